// How the threads of an OpenMP team wait for one another.
#pragma once

namespace dms {

// Lets waiting threads give up their core after about 0.1 ms.  By default libgomp's spin for several milliseconds, which
// nothing is gained by on a quiet machine and which, beside another busy program, keeps the awaited thread from running:
// a training step on 2 threads of 2 cores was 6 times slower beside a program that kept one core busy, and is 2 times
// slower with this.  libgomp reads its setting from the environment while it is loaded, before main(), so the program is
// started anew with GOMP_SPINCOUNT set.  Returns without that where the user has chosen (GOMP_SPINCOUNT or
// OMP_WAIT_POLICY), where a single thread computes, and where a command (argv[1]) computes next to nothing.
void limit_openmp_spinning(int argc, char** argv);

}  // namespace dms
