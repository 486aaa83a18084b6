/* The thread pool. A job is one number, `epoch`, that the caller counts up; idle workers watch it, first spinning (the
 * next layer is microseconds away), then asleep on a condition (between runs).
 *
 * Range r belongs to thread r, but any thread may run it: whoever first moves claim[r] from epoch-1 to epoch. Workers try
 * their own range only. The caller, done with range 0, takes every range that no worker has begun: a worker that is late
 * (asleep, or without a core because there are more threads than cores) delays nobody. A claim carries its epoch, so a
 * worker that wakes up for a job that is over finds nothing to take.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define SPIN_SECONDS 50e-6
#define CACHE_LINE 64

typedef struct {
  _Alignas(CACHE_LINE) atomic_uint claim; /* the last epoch whose range was taken */
  bp_pool *pool;
  pthread_t thread;
  int index;
} bp_slot;

struct bp_pool {
  _Alignas(CACHE_LINE) atomic_uint epoch;
  atomic_int stop;
  bp_task task; /* the job: written before epoch moves, read only by holders of a claim */
  void *arg;
  int n;
  int threads;
  double spin_seconds;
  _Alignas(CACHE_LINE) atomic_int pending;  /* ranges not done */
  _Alignas(CACHE_LINE) atomic_int sleepers; /* workers asleep, or about to be */
  atomic_int caller_sleeps;
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  bp_slot *slots;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Runs range `index` of job `epoch` unless someone has taken it. */
static void try_range(bp_pool *pool, unsigned epoch, int index) {
  atomic_uint *claim = &pool->slots[index].claim;
  unsigned expected = epoch - 1;
  if (atomic_load_explicit(claim, memory_order_relaxed) != expected ||
      !atomic_compare_exchange_strong(claim, &expected, epoch))
    return;
  int begin = (int)((int64_t)pool->n * index / pool->threads);
  int end = (int)((int64_t)pool->n * (index + 1) / pool->threads);
  if (begin < end) pool->task(pool->arg, begin, end, index);
  if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->lock);
  }
}

/* Waits for an epoch other than `seen` and returns it. */
static unsigned next_job(bp_pool *pool, unsigned seen) {
  unsigned epoch;
  double start = now();
  do {
    for (int i = 0; i < 64; i++) {
      if ((epoch = atomic_load_explicit(&pool->epoch, memory_order_acquire)) != seen) return epoch;
      relax();
    }
  } while (now() - start < pool->spin_seconds);
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1); /* before the last look at epoch: the caller moves epoch, then looks at sleepers */
  while ((epoch = atomic_load(&pool->epoch)) == seen) pthread_cond_wait(&pool->work, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
  return epoch;
}

static void *worker(void *arg) {
  bp_slot *slot = arg;
  for (unsigned seen = 0;;) {
    seen = next_job(slot->pool, seen);
    if (atomic_load(&slot->pool->stop)) return NULL;
    try_range(slot->pool, seen, slot->index);
  }
}

static void publish(bp_pool *pool) {
  atomic_fetch_add(&pool->epoch, 1);
  if (atomic_load(&pool->sleepers)) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
  }
}

static void wait_done(bp_pool *pool) {
  double start = now();
  do {
    for (int i = 0; i < 64; i++) {
      if (!atomic_load_explicit(&pool->pending, memory_order_acquire)) return;
      relax();
    }
  } while (now() - start < pool->spin_seconds);
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->caller_sleeps, 1);
  while (atomic_load(&pool->pending)) pthread_cond_wait(&pool->done, &pool->lock);
  atomic_store(&pool->caller_sleeps, 0);
  pthread_mutex_unlock(&pool->lock);
}

void bp_pool_for(void *opaque, bp_task task, void *arg, int n) {
  bp_pool *pool = opaque;
  if (n < 1) return;
  if (n == 1 || pool->threads == 1) {
    task(arg, 0, n, 0);
    return;
  }
  pool->task = task;
  pool->arg = arg;
  pool->n = n;
  atomic_store_explicit(&pool->pending, pool->threads, memory_order_relaxed);
  publish(pool);
  unsigned epoch = atomic_load_explicit(&pool->epoch, memory_order_relaxed);
  for (int i = 0; i < pool->threads; i++) try_range(pool, epoch, i);
  wait_done(pool);
}

int bp_pool_threads(const bp_pool *pool) { return pool->threads; }

/* Cores that this thread, and so its workers, may use. */
static int cores(void) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
  return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static int start_workers(bp_pool *pool, int threads) {
  /* Signals belong to the program's own threads. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int started = 1;
  for (; started < threads; started++) {
    bp_slot *slot = &pool->slots[started];
    slot->pool = pool;
    slot->index = started;
    if (pthread_create(&slot->thread, NULL, worker, slot)) break;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return started;
}

bp_pool *bp_pool_open(int threads) {
  void *memory = NULL, *slots = NULL;
  if (posix_memalign(&memory, CACHE_LINE, sizeof(bp_pool))) return NULL;
  if (posix_memalign(&slots, CACHE_LINE, (size_t)threads * sizeof(bp_slot))) {
    free(memory);
    return NULL;
  }
  bp_pool *pool = memory;
  pool->slots = slots;
  for (int i = 0; i < threads; i++) atomic_init(&pool->slots[i].claim, 0);
  atomic_init(&pool->epoch, 0);
  atomic_init(&pool->stop, 0);
  atomic_init(&pool->pending, 0);
  atomic_init(&pool->sleepers, 0);
  atomic_init(&pool->caller_sleeps, 0);
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->work, NULL);
  pthread_cond_init(&pool->done, NULL);
  /* With more threads than cores, a thread that spins keeps a core from one that has work. */
  pool->spin_seconds = threads > cores() ? 0 : SPIN_SECONDS;
  pool->threads = start_workers(pool, threads); /* workers read it only once there is a job */
  return pool;
}

void bp_pool_close(bp_pool *pool) {
  if (!pool) return;
  atomic_store(&pool->stop, 1);
  publish(pool);
  for (int i = 1; i < pool->threads; i++) pthread_join(pool->slots[i].thread, NULL);
  pthread_cond_destroy(&pool->done);
  pthread_cond_destroy(&pool->work);
  pthread_mutex_destroy(&pool->lock);
  bp_pool_abandon(pool);
}

void bp_pool_abandon(bp_pool *pool) {
  if (!pool) return;
  free(pool->slots);
  free(pool);
}
