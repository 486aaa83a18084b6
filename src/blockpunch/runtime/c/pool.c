/* The thread pool. A job is told by one number, `epoch`, that the caller counts up; idle workers watch it, first spinning
 * (the next layer is microseconds away), then asleep on a condition (between runs).
 *
 * Every thread has a range of the job, and takes it piece by piece, half of what is left each time; one that is done
 * takes pieces of the others' ranges. So cores of unequal speed, cores that something else uses, and workers that are late
 * (asleep, or without a core because there are more threads than cores) finish together. What is left of a range is one
 * word, [begin, end), that pieces are cut from by compare-and-swap: whoever succeeds holds work of the job at hand, which
 * cannot be over before the piece is, so a worker that wakes up late needs no other proof of which job it serves.
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
  _Alignas(CACHE_LINE) atomic_uint_least64_t left; /* of the thread's range: begin << 32 | end */
  bp_pool *pool;
  pthread_t thread;
  int index;
} bp_slot;

struct bp_pool {
  _Alignas(CACHE_LINE) atomic_uint epoch;
  atomic_int stop;
  bp_task task; /* the job: written before its ranges are, read only by holders of a piece */
  void *arg;
  atomic_int grain; /* a late worker may read it while the next job is written */
  int threads;
  double spin_seconds;
  _Alignas(CACHE_LINE) atomic_int pending;  /* units not done */
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

static uint64_t range_of(int begin, int end) { return (uint64_t)(uint32_t)begin << 32 | (uint32_t)end; }

/* Where the next piece of a range ends: half of it, at least a grain, to a whole grain where that leaves something. */
static int cut(int begin, int end, int grain) {
  int half = (end - begin + 1) / 2, stop = begin + (half > grain ? half : grain);
  if (stop >= end) return end;
  return stop / grain * grain > begin ? stop / grain * grain : stop;
}

/* Does what is left of thread `owner`'s range, shared with whoever else takes pieces of it; gives how many units that was. */
static int run_range(bp_pool *pool, int owner, int thread) {
  atomic_uint_least64_t *left = &pool->slots[owner].left;
  uint64_t seen = atomic_load_explicit(left, memory_order_acquire);
  for (int done = 0;;) {
    int begin = (int)(seen >> 32), end = (int)(uint32_t)seen;
    if (begin >= end) return done;
    int stop = cut(begin, end, atomic_load_explicit(&pool->grain, memory_order_relaxed));
    if (!atomic_compare_exchange_strong(left, &seen, range_of(stop, end))) continue;
    pool->task(pool->arg, begin, stop, thread);
    done += stop - begin;
    seen = atomic_load_explicit(left, memory_order_acquire);
  }
}

/* The thread's own range, then the others'. */
static void work(bp_pool *pool, int thread) {
  int done = 0;
  for (int i = 0; i < pool->threads; i++) done += run_range(pool, (thread + i) % pool->threads, thread);
  if (done && atomic_fetch_sub(&pool->pending, done) == done && atomic_load(&pool->caller_sleeps)) {
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
    work(slot->pool, slot->index);
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

void bp_pool_for(void *opaque, bp_task task, void *arg, int n, int grain) {
  bp_pool *pool = opaque;
  if (n < 1) return;
  if (n == 1 || pool->threads == 1) {
    task(arg, 0, n, 0);
    return;
  }
  pool->task = task;
  pool->arg = arg;
  atomic_store_explicit(&pool->grain, grain, memory_order_relaxed);
  atomic_store_explicit(&pool->pending, n, memory_order_relaxed);
  for (int i = 0; i < pool->threads; i++) {
    int begin = (int)((int64_t)n * i / pool->threads), end = (int)((int64_t)n * (i + 1) / pool->threads);
    atomic_store_explicit(&pool->slots[i].left, range_of(begin, end), memory_order_release);
  }
  publish(pool);
  work(pool, 0);
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
  for (int i = 0; i < threads; i++) atomic_init(&pool->slots[i].left, 0);
  atomic_init(&pool->epoch, 0);
  atomic_init(&pool->stop, 0);
  atomic_init(&pool->grain, 1);
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
