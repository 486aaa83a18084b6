/* Exercises the pool and the network calls from many threads; built with sanitizers by the tests. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blockpunch.h"
#include "pool.h"

#define MOST 1000

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) {                                                      \
      fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition);       \
      exit(1);                                                               \
    }                                                                        \
  } while (0)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Work for some microseconds: long enough that the workers come to their ranges before the caller takes them. */
static void linger(double microseconds) {
  for (double end = now() + 1e-6 * microseconds; now() < end;) {
  }
}

static pthread_t main_thread;
static atomic_int by_workers; /* pieces that another thread than the caller ran */

typedef struct {
  int grain;
  atomic_int hits[MOST], units[64], running[64], broken; /* broken: pieces that begin and end within a grain */
  double microseconds[64];                               /* how long each piece takes the thread */
} record;

static void note(void *arg, int begin, int end, int thread) {
  record *r = arg;
  CHECK(begin < end && thread >= 0 && thread < 64);
  CHECK(atomic_fetch_add(&r->running[thread], 1) == 0); /* a thread's own memory serves one piece at a time */
  if (!pthread_equal(pthread_self(), main_thread)) atomic_fetch_add(&by_workers, 1);
  linger(r->microseconds[thread]);
  if (begin % r->grain && end % r->grain && begin / r->grain == (end - 1) / r->grain) r->broken++;
  r->units[thread] += end - begin;
  for (int i = begin; i < end; i++) r->hits[i]++;
  atomic_fetch_sub(&r->running[thread], 1);
}

static void nap(long nanoseconds) {
  struct timespec t = {0, nanoseconds};
  nanosleep(&t, NULL);
}

/* Every index once; a thread index is used by one piece at a time; only the ends of shares lie within a grain. */
static void test_ranges(int threads) {
  bp_pool *pool = bp_pool_open(threads);
  CHECK(pool && bp_pool_threads(pool) == threads);
  const int sizes[] = {0, 1, 2, 3, 7, 8, 63, 64, 65, 999};
  for (int round = 0; round < 200; round++) {
    int n = sizes[round % 10];
    record r;
    memset(&r, 0, sizeof r);
    r.grain = 1 + round % 3 * 4;
    for (int t = 0; t < 64; t++) r.microseconds[t] = (round * 7 + t * 13) % 20;
    bp_pool_for(pool, note, &r, n, r.grain);
    for (int i = 0; i < MOST; i++) CHECK(r.hits[i] == (i < n));
    for (int t = threads; t < 64; t++) CHECK(r.units[t] == 0);
    if (n / threads > 2 * r.grain) CHECK(r.broken <= 2 * threads);
    if (round % 50 == 0) nap(300000); /* let the workers fall asleep */
  }
  bp_pool_close(pool);
}

/* A unit takes the caller ten times as long as a worker: the workers must end up with most of the units. */
static void uneven(void *arg, int begin, int end, int thread) {
  linger((end - begin) * (thread ? 20 : 200));
  atomic_fetch_add((atomic_int *)arg + thread, end - begin);
}
static void test_unequal_speed(void) {
  bp_pool *pool = bp_pool_open(2);
  int most = 0;
  for (int round = 0; round < 30; round++) { /* the best of many: a busy machine may keep the worker from running */
    atomic_int units[2] = {0, 0};
    bp_pool_for(pool, uneven, units, 64, 1);
    CHECK(units[0] + units[1] == 64);
    if (units[1] > most) most = units[1];
  }
  CHECK(most > 40);
  bp_pool_close(pool);
}

/* The result of one job is the input of the next: a missing barrier shows as a race or a wrong sum. */
static long chain[MOST], next_chain[MOST];
static void shift(void *arg, int begin, int end, int thread) {
  linger((begin + *(int *)arg) * (thread + 3) % 7);
  for (int i = begin; i < end; i++) next_chain[i] = chain[(i + 1) % MOST] + 1;
}
static void copy(void *arg, int begin, int end, int thread) {
  (void)arg, (void)thread;
  for (int i = begin; i < end; i++) chain[i] = next_chain[i];
}
static void test_order(int threads, int rounds) {
  bp_pool *pool = bp_pool_open(threads);
  for (int i = 0; i < MOST; i++) chain[i] = i;
  for (int k = 0; k < rounds; k++) {
    bp_pool_for(pool, shift, &k, MOST, 1 + k % 9);
    bp_pool_for(pool, copy, NULL, MOST, 1);
  }
  for (int i = 0; i < MOST; i++) CHECK(chain[i] == (i + rounds) % MOST + rounds);
  bp_pool_close(pool);
}

/* One net, many callers. */
static _Alignas(64) float weights[150];
static bp_net *net;
static void *caller(void *arg) {
  float x[150], y[150], total;
  int id = *(int *)arg;
  for (int round = 0; round < 100; round++) {
    for (int i = 0; i < 150; i++) x[i] = (float)(id * 1000 + round + i);
    const float *in[] = {x};
    float *out[] = {y, &total};
    double seconds[2];
    CHECK((round % 2 ? bp_run(net, in, out) : bp_run_profiled(net, in, out, seconds)) == BP_OK);
    for (int i = 0; i < 150; i++) CHECK(y[i] == 2 * x[i] + weights[i]);
    if (round % 2 == 0) CHECK(seconds[0] >= 0 && seconds[1] >= 0 && seconds[0] + seconds[1] < 60);
  }
  return NULL;
}
static void test_callers(int threads) {
  net = bp_open(weights, sizeof weights, threads);
  CHECK(net && bp_threads(net) == threads);
  pthread_t them[4];
  int ids[4];
  for (int i = 0; i < 4; i++) {
    ids[i] = i;
    CHECK(!pthread_create(&them[i], NULL, caller, &ids[i]));
  }
  for (int i = 0; i < 4; i++) pthread_join(them[i], NULL);
  bp_close(net);
}

static void test_edges(void) {
  static float unaligned[151];
  CHECK(!bp_open(weights, sizeof weights - 4, 1));
  CHECK(!bp_open(weights, sizeof weights, 0));
  CHECK(!bp_open(NULL, sizeof weights, 1));
  bp_close(NULL);
  memcpy(unaligned + 1, weights, sizeof weights);
  CHECK((net = bp_open((uintptr_t)unaligned % 64 ? unaligned : unaligned + 1, sizeof weights, 1000)));
  CHECK(bp_threads(net) == bp_describe()->max_threads);
  CHECK(bp_run(net, NULL, NULL) == BP_INVALID);
  bp_close(net);
}

/* The child has no workers: it must still get its answer, and be able to close. */
static void test_fork(void) {
  net = bp_open(weights, sizeof weights, 4);
  pid_t child = fork();
  CHECK(child >= 0);
  if (!child) {
    int id = 7;
    caller(&id);
    bp_close(net);
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  bp_close(net);
}

static void work(void *arg, int begin, int end, int thread) {
  (void)begin, (void)end, (void)thread;
  linger(*(double *)arg);
}

/* Prints the microseconds that a job costs beyond its longest range, when the workers are awake. */
static void measure(int threads) {
  bp_pool *pool = bp_pool_open(threads);
  double best = 1, microseconds = 5;
  for (int round = 0; round < 50; round++) {
    double start = now();
    for (int k = 0; k < 100; k++) bp_pool_for(pool, work, &microseconds, 64, 64);
    double each = (now() - start) / 100 - 1e-6 * microseconds;
    if (each < best) best = each;
  }
  printf("%.3f\n", best * 1e6);
  bp_pool_close(pool);
}

int main(int argc, char **argv) {
  main_thread = pthread_self();
  for (int i = 0; i < 150; i++) weights[i] = (float)i;
  if (argc > 1) {
    measure(atoi(argv[1]));
    return 0;
  }
  for (int threads = 1; threads <= 9; threads += 2) test_ranges(threads);
  CHECK(atomic_load(&by_workers) > 100);
  test_unequal_speed();
  test_order(2, 500);
  test_order(7, 100);
  test_callers(1);
  test_callers(3);
  test_edges();
  test_fork();
  return 0;
}
