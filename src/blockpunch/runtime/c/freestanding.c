/* What compilers may call even in freestanding code. Built with -fno-builtin, or memset would become a call of itself. */
#include <stddef.h>
#define BP_LOCAL __attribute__((visibility("hidden")))
BP_LOCAL void *memset(void *to, int value, size_t n) {
  unsigned char *t = to;
  for (size_t i = 0; i < n; i++) t[i] = (unsigned char)value;
  return to;
}
BP_LOCAL void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  unsigned char *t = to;
  const unsigned char *f = from;
  for (size_t i = 0; i < n; i++) t[i] = f[i];
  return to;
}
BP_LOCAL void *memmove(void *to, const void *from, size_t n) {
  unsigned char *t = to;
  const unsigned char *f = from;
  if (t < f) for (size_t i = 0; i < n; i++) t[i] = f[i];
  else for (size_t i = n; i-- > 0;) t[i] = f[i];
  return to;
}
