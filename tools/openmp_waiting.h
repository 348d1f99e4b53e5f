// How the threads of an OpenMP team wait for one another.
#pragma once

namespace dms {

// On a machine whose cores other programs use, too, lets waiting threads give up their core after 0.05 ms.  By default
// libgomp's spin for about 15 ms, which on a quiet machine is best (5 to 20 % faster) and beside another busy program
// keeps the awaited thread from running: training on 2 threads of 2 cores took 6 times as long beside one that kept one
// core busy.  libgomp reads its setting from the environment while it is loaded, before main(), so the program is started
// anew with GOMP_SPINCOUNT set.  Returns without that where the machine is idle, where the user has chosen
// (GOMP_SPINCOUNT or OMP_WAIT_POLICY), where a single thread computes, in a rank of several (what keeps its cores busy is
// the others), and where a command (argv[1]) computes next to nothing.
void limit_openmp_spinning(int argc, char** argv);

}  // namespace dms
