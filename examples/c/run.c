/* Runs a compiled network without Python: ./run weights.bin [input.bin [output.bin]], raw float32 in and out. */
#include <stdio.h>
#include <stdlib.h>

#include "blockpunch.h"

static size_t elements(const bp_tensor *tensor) {
  size_t n = 1;
  for (int i = 0; i < tensor->rank; i++) n *= (size_t)tensor->shape[i];
  return n;
}

static void transfer(const char *path, const char *mode, void *data, size_t bytes) {
  FILE *file = fopen(path, mode);
  size_t done = !file ? 0 : *mode == 'r' ? fread(data, 1, bytes, file) : fwrite(data, 1, bytes, file);
  if (!file || done != bytes || fclose(file)) {
    fprintf(stderr, "%s: cannot be opened, or is not %zu bytes long\n", path, bytes);
    exit(1);
  }
}

int main(int argc, char **argv) {
  const bp_model *model = bp_describe();
  if (argc < 2 || model->n_inputs != 1 || model->n_outputs != 1) return fprintf(stderr, "run WEIGHTS [IN [OUT]]\n"), 2;
  size_t inputs = elements(&model->inputs[0]), outputs = elements(&model->outputs[0]), best = 0;
  void *weights = aligned_alloc(64, (model->weights_bytes + 63) / 64 * 64 + 64);
  float *x = calloc(inputs, sizeof *x), *y = calloc(outputs, sizeof *y);
  transfer(argv[1], "rb", weights, model->weights_bytes);
  if (argc > 2) transfer(argv[2], "rb", x, inputs * sizeof *x);

  bp_net *net = bp_open(weights, model->weights_bytes, 1);
  const float *in[] = {x};
  float *out[] = {y};
  if (!net || bp_run(net, in, out) != BP_OK) return fprintf(stderr, "%s: no memory\n", model->name), 1;
  bp_close(net);

  for (size_t i = 1; i < outputs; i++) best = y[i] > y[best] ? i : best;
  printf("%s: %zu outputs, the largest is %s[%zu] = %g\n", model->name, outputs, model->outputs[0].name, best, y[best]);
  if (argc > 3) transfer(argv[3], "wb", y, outputs * sizeof *y);
  return 0;
}
