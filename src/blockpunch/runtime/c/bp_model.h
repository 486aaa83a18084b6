/* bp_model.h: what a compiled network offers, and what it asks of its surroundings.
 *
 * A network's generated C (model.c) is freestanding: no allocation, no files, no threads, no libc state. It sees the
 * outside only through bp_env, so the same code runs in a process with a thread pool, on a board without an operating
 * system, or inside an emulator. All data is float32, contiguous, in the row-major order of the shapes given.
 */
#ifndef BP_MODEL_H
#define BP_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define BP_MODEL_ABI 3

#if defined(_WIN32)
#define BP_EXPORT __declspec(dllexport)
#else
#define BP_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* How a model reaches the outside; everything may run on one thread. */
typedef struct bp_env {
  /* Splits 0..n into contiguous ranges, calls task(arg, begin, end, thread) for each, returns when all are done.
   * `thread` is below bp_model.max_threads and no two ranges that run at the same time share it. Any split gives the same
   * result; ranges of `grain` units, from a multiple of it on, share what one of them prepares. */
  void (*parallel_for)(void *pool, void (*task)(void *arg, int begin, int end, int thread), void *arg, int n, int grain);
  void *pool;                               /* given back to parallel_for */
  void (*tick)(void *tick_arg, int step);   /* NULL, or called after each step, once for each image (profile) */
  void *tick_arg;
} bp_env;

typedef struct bp_tensor {
  const char *name;
  int rank;
  int64_t shape[8];
} bp_tensor;

typedef struct bp_model {
  int abi;                  /* BP_MODEL_ABI */
  const char *name;
  int n_inputs, n_outputs;
  const bp_tensor *inputs, *outputs;
  size_t weights_bytes, scratch_bytes;
  int n_steps;              /* tick is called with 0 .. n_steps-1 */
  int max_threads;          /* how many threads may share a run */
  size_t thread_scratch_bytes; /* of each thread, behind the scratch_bytes that they share */
} bp_model;

extern BP_EXPORT const bp_model bp_model_info;

/* scratch: scratch_bytes + thread_scratch_bytes for each `thread` that parallel_for uses, from 0 on.
 * weights, scratch: 64-byte aligned; inputs, outputs: any alignment, contiguous float32. */
BP_EXPORT void bp_model_run(const void *weights, void *scratch, const float *const *inputs, float *const *outputs,
                            const bp_env *env);

#ifdef __cplusplus
}
#endif
#endif
