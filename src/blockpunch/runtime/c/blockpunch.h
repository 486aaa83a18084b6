/* blockpunch.h: run a compiled network from C. The library needs nothing but libc and pthreads.
 *
 *   bp_net *net = bp_open(weights, bytes, 1);
 *   const float *in[] = {image};
 *   float *out[] = {scores};
 *   bp_run(net, in, out);
 *   bp_close(net);
 *
 * Names, shapes and counts of inputs and outputs are in bp_describe(). Arrays are contiguous float32, of any alignment;
 * an input may not overlap an output.
 */
#ifndef BLOCKPUNCH_H
#define BLOCKPUNCH_H

#include "bp_model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bp_net bp_net;

enum { BP_OK = 0, BP_INVALID = 1, BP_NO_MEMORY = 2 };

/* What the network takes and gives. Never NULL, valid as long as the library is loaded. */
BP_EXPORT const bp_model *bp_describe(void);

/* Opens the network on `threads` threads (the caller is one of them; fewer where the system has no more to give, or the
 * model was planned for fewer). `weights` must stay valid until bp_close; it is copied only where it is not 64-byte
 * aligned. NULL: bytes is not bp_describe()->weights_bytes, threads < 1, or out of memory. */
BP_EXPORT bp_net *bp_open(const void *weights, size_t bytes, int threads);

/* How many threads the network runs on. */
BP_EXPORT int bp_threads(const bp_net *net);

/* Runs the network once; returns BP_OK, BP_INVALID (a NULL pointer) or BP_NO_MEMORY.
 *
 * Any number of threads may call it on one net at once: every call has its own scratch memory (kept for later calls).
 * The pool serves one call at a time; calls that find it busy do all their work on their own thread. In a child after
 * fork() a net runs on the calling thread alone. */
BP_EXPORT int bp_run(bp_net *net, const float *const *inputs, float *const *outputs);

/* The same, and writes the seconds of each of the bp_describe()->n_steps steps. */
BP_EXPORT int bp_run_profiled(bp_net *net, const float *const *inputs, float *const *outputs, double *step_seconds);

/* Frees everything. No call may be running. NULL is fine. */
BP_EXPORT void bp_close(bp_net *net);

#ifdef __cplusplus
}
#endif
#endif
