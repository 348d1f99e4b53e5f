"""TensorBoard's own reader opens what the trainer writes, and a resumed run replaces the points it repeats.

    tensorboard_reference.py PATH_TO_METRICS_SAMPLE
"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SAMPLE = None

TAGS = {
    "loss/total", "loss/kl", "loss/compression",
    "eviction/rate", "eviction/target_rate", "eviction/target_cr", "eviction/alpha_mean",
    "optimizer/grad_norm", "optimizer/lr",
    "speed/tokens_per_s", "speed/step_seconds", "speed/mfu", "memory/peak_bytes",
    "ranks/compute_seconds", "ranks/communication_seconds", "ranks/data_seconds",
}


class TensorBoardReads(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.run_dir = pathlib.Path(directory.name)

    def write(self, begin, end, loss_offset=0.0):
        subprocess.run([SAMPLE, self.run_dir, str(begin), str(end), str(loss_offset)], check=True)

    def read(self):
        # size_guidance 0: keep every point instead of a random sample.
        events = EventAccumulator(str(self.run_dir / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        return events

    def losses(self):
        return [(point.step, point.value) for point in self.read().Scalars("loss/total")]

    def test_every_tag_and_value_is_read(self):
        self.write(0, 5)
        events = self.read()
        self.assertEqual(set(events.Tags()["scalars"]), TAGS)
        self.assertEqual(events.file_version, 2.0)
        self.assertEqual([(p.step, p.value) for p in events.Scalars("loss/total")], [(s, float(s)) for s in range(5)])
        self.assertEqual([p.value for p in events.Scalars("memory/peak_bytes")], [5.0 * s for s in range(5)])
        self.assertEqual([p.value for p in events.Scalars("eviction/target_rate")], [0.75] * 5)
        # Zero is a value, not an absent field.
        self.assertEqual([p.value for p in events.Scalars("loss/kl")], [0.0] * 5)
        times = [p.wall_time for p in events.Scalars("loss/total")]
        self.assertEqual(times, sorted(times))

    def test_a_resumed_run_replaces_the_points_it_repeats(self):
        self.write(0, 10)
        self.write(6, 8, loss_offset=100)
        self.assertEqual(self.losses(), [(s, float(s)) for s in range(6)] + [(6, 106.0), (7, 107.0)])
        self.write(7, 9, loss_offset=200)
        self.assertEqual(self.losses(), [(s, float(s)) for s in range(6)] + [(6, 106.0), (7, 207.0), (8, 208.0)])

    def test_a_fresh_start_in_the_same_directory_hides_the_old_run(self):
        self.write(0, 4)
        self.write(0, 2, loss_offset=50)
        self.assertEqual(self.losses(), [(0, 50.0), (1, 51.0)])

    def test_a_torn_last_event_loses_only_itself(self):
        self.write(0, 4)
        (event_file,) = (self.run_dir / "tensorboard").iterdir()
        event_file.write_bytes(event_file.read_bytes()[:-5])
        self.write(3, 5, loss_offset=100)
        self.assertEqual(self.losses(), [(0, 0.0), (1, 1.0), (2, 2.0), (3, 103.0), (4, 104.0)])


if __name__ == "__main__":
    SAMPLE = sys.argv.pop(1)
    unittest.main()
