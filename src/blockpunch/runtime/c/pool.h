/* pool.h: a small thread pool that splits a range over threads and waits for all of it. */
#ifndef BP_POOL_H
#define BP_POOL_H

typedef struct bp_pool bp_pool;
typedef void (*bp_task)(void *arg, int begin, int end, int thread);

/* threads-1 workers are started (fewer where the system refuses); the caller of bp_pool_for is the other one.
 * NULL: out of memory. */
bp_pool *bp_pool_open(int threads);
int bp_pool_threads(const bp_pool *pool);

/* Does 0..n in pieces, each of one thread: at least `grain` units long where the threads' shares are, and cut at multiples of
 * it where that is possible. Returns when all are done. One caller at a time, not from a task. */
void bp_pool_for(void *pool, bp_task task, void *arg, int n, int grain);

void bp_pool_close(bp_pool *pool);   /* stops and joins the workers */
void bp_pool_abandon(bp_pool *pool); /* in a forked child, where the workers do not exist: frees the memory only */

#endif
