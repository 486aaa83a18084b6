/* The surroundings of a model in a process: scratch memory, threads, a clock. */
#define _GNU_SOURCE
#include "blockpunch.h"
#include "pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)

/* Scratch memory that no call is using, chained through its first bytes. */
typedef struct idle {
  struct idle *next;
} idle;

struct bp_net {
  const void *weights;
  void *owned_weights; /* the aligned copy, or NULL */
  bp_pool *pool;       /* NULL with one thread */
  pthread_mutex_t pool_lock, idle_lock;
  idle *idle;
  pid_t pid;
};

typedef struct {
  double *seconds, last;
} profile;

const bp_model *bp_describe(void) { return &bp_model_info; }

static void *aligned(size_t bytes) {
  void *memory = NULL;
  int huge = bytes >= 2 * HUGE_PAGE;
  if (bytes < ALIGNMENT) bytes = ALIGNMENT;
  if (posix_memalign(&memory, huge ? HUGE_PAGE : ALIGNMENT, bytes)) return NULL;
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE); /* a hint: fewer address look-ups */
#endif
  return memory;
}

/* New scratch is zero, so that a run never depends on what the memory held before. */
static void *new_scratch(int threads) {
  size_t bytes = bp_model_info.scratch_bytes + (size_t)threads * bp_model_info.thread_scratch_bytes;
  void *memory = aligned(bytes);
  if (memory) memset(memory, 0, bytes);
  return memory;
}

static void *take_scratch(bp_net *net) {
  pthread_mutex_lock(&net->idle_lock);
  idle *found = net->idle;
  if (found) net->idle = found->next;
  pthread_mutex_unlock(&net->idle_lock);
  if (found) found->next = NULL;
  return found ? (void *)found : new_scratch(bp_threads(net));
}

static void give_scratch(bp_net *net, void *scratch) {
  idle *mine = scratch;
  pthread_mutex_lock(&net->idle_lock);
  mine->next = net->idle;
  net->idle = mine;
  pthread_mutex_unlock(&net->idle_lock);
}

bp_net *bp_open(const void *weights, size_t bytes, int threads) {
  if (bytes != bp_model_info.weights_bytes || (bytes && !weights) || threads < 1) return NULL;
  if (bp_model_info.max_threads > 0 && threads > bp_model_info.max_threads) threads = bp_model_info.max_threads;
  bp_net *net = calloc(1, sizeof *net);
  if (!net) return NULL;
  net->weights = weights;
  net->pid = getpid();
  pthread_mutex_init(&net->pool_lock, NULL);
  pthread_mutex_init(&net->idle_lock, NULL);
  if ((uintptr_t)weights % ALIGNMENT) {
    if ((net->owned_weights = aligned(bytes))) net->weights = memcpy(net->owned_weights, weights, bytes);
  }
  if (threads > 1) net->pool = bp_pool_open(threads);
  void *scratch = new_scratch(bp_threads(net));
  if (scratch) give_scratch(net, scratch);
  if (!scratch || (uintptr_t)net->weights % ALIGNMENT || (threads > 1 && !net->pool)) {
    bp_close(net);
    return NULL;
  }
  return net;
}

int bp_threads(const bp_net *net) { return net->pool ? bp_pool_threads(net->pool) : 1; }

static void serial_for(void *pool, bp_task task, void *arg, int n, int grain) {
  (void)pool, (void)grain;
  if (n > 0) task(arg, 0, n, 0);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void tick(void *arg, int step) {
  profile *p = arg;
  double t = now();
  p->seconds[step] += t - p->last; /* a step runs once for every image */
  p->last = t;
}

static int run(bp_net *net, const float *const *inputs, float *const *outputs, profile *p) {
  if (!net || !inputs || !outputs) return BP_INVALID;
  /* After fork() the locks and workers are of the parent: touch none of them. */
  int forked = getpid() != net->pid;
  void *scratch = forked ? new_scratch(1) : take_scratch(net);
  if (!scratch) return BP_NO_MEMORY;
  int pooled = !forked && net->pool && !pthread_mutex_trylock(&net->pool_lock);
  bp_env env = {serial_for, NULL, NULL, NULL};
  if (pooled) {
    env.parallel_for = bp_pool_for;
    env.pool = net->pool;
  }
  if (p) {
    env.tick = tick;
    env.tick_arg = p;
    p->last = now();
  }
  bp_model_run(net->weights, scratch, inputs, outputs, &env);
  if (pooled) pthread_mutex_unlock(&net->pool_lock);
  if (forked) free(scratch);
  else give_scratch(net, scratch);
  return BP_OK;
}

int bp_run(bp_net *net, const float *const *inputs, float *const *outputs) { return run(net, inputs, outputs, NULL); }

int bp_run_profiled(bp_net *net, const float *const *inputs, float *const *outputs, double *step_seconds) {
  if (!step_seconds) return BP_INVALID;
  for (int i = 0; i < bp_model_info.n_steps; i++) step_seconds[i] = 0;
  profile p = {step_seconds, 0};
  return run(net, inputs, outputs, &p);
}

void bp_close(bp_net *net) {
  if (!net) return;
  if (getpid() == net->pid) bp_pool_close(net->pool);
  else bp_pool_abandon(net->pool);
  while (net->idle) {
    idle *next = net->idle->next;
    free(net->idle);
    net->idle = next;
  }
  free(net->owned_weights);
  free(net);
}
