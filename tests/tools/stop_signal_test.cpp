#include "tools/stop_signal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace dms {
namespace {

// What `body` returned, in a process of its own because the handlers and the flag are global; -signal when one ended it.
template <class Body>
int in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(StopSignal, IsNotRequestedBeforeASignal) {
  EXPECT_EQ(in_child([] {
              catch_stop_signals();
              return stop_requested();
            }),
            0);
}

TEST(StopSignal, EachSignalSetsTheFlagAndTheProcessGoesOn) {
  for (int signal_number : {SIGTERM, SIGINT, SIGUSR1}) {
    EXPECT_EQ(in_child([=] {
                catch_stop_signals();
                raise(signal_number);
                return stop_requested() ? 42 : 1;
              }),
              42)
        << signal_number;
  }
}

TEST(StopSignal, TheSecondInterruptKills) {
  EXPECT_EQ(in_child([] {
              catch_stop_signals();
              raise(SIGINT);
              raise(SIGINT);
              return 42;
            }),
            -SIGINT);
}

TEST(StopSignal, ASecondTerminationDoesNotKillWhileSaving) {
  EXPECT_EQ(in_child([] {
              catch_stop_signals();
              raise(SIGTERM);
              raise(SIGTERM);
              return stop_requested() ? 42 : 1;
            }),
            42);
}

}  // namespace
}  // namespace dms
