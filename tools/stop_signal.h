// SIGTERM, SIGUSR1 and SIGINT as a question: a command that can stop in good order asks `stop_requested()` between units of
// work, saves, and throws Interrupted.  Commands that have nothing to save leave the signals alone.
#pragma once

namespace dms {

// From here on SIGTERM, SIGUSR1 and the first SIGINT only set a flag; a second SIGINT kills.
void catch_stop_signals();
bool stop_requested();

}  // namespace dms
