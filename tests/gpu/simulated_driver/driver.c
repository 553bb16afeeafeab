/* A stand-in for NVIDIA's driver (libcuda.so.1) on a machine without a GPU, for the real PyCUDA and the real cuda-python.

   Device memory is the host's. Work on a stream is done at once; while the stream is captured it is recorded, and done at each
   launch of the graph. Calls without a current context fail, as do captures of streams that wait for the legacy stream. At its
   end a process says on stderr what it still held. build.py adds all other functions of cuda.h, which fail as not supported. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { COPY, STAMP, ADD_HALF };
enum { NON_BLOCKING = 1, THREAD_LOCAL = 1, MAJOR = 75, MINOR = 76 };

typedef unsigned long long address;
typedef struct { double at; } Event;
typedef struct { int kind; void *target; const void *source; size_t count; } Work;
typedef struct { Work *works; int count; } Graph;
typedef struct { unsigned flags; int capturing, invalid; Graph *graph; } Stream;

static const size_t CAPACITY = 1ull << 33;
static long retained, device_bytes, host_bytes, streams, events, graphs, executables;
static __thread void *contexts[64];
static __thread int depth;
static int primary;

#define COUNT(counter, amount) __sync_fetch_and_add(&counter, (long)(amount))
#define REQUIRE_CONTEXT if (!depth || !contexts[depth - 1]) return INVALID_CONTEXT

static void report(void) {
  fprintf(stderr, "simulated driver: contexts %ld, device bytes %ld, host bytes %ld, streams %ld, events %ld, graphs %ld, executables %ld\n",
          retained, device_bytes, host_bytes, streams, events, graphs, executables);
}

static void do_work(Work work) {
  if (work.kind == COPY) memcpy(work.target, work.source, work.count);
  if (work.kind == STAMP) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ((Event *)work.target)->at = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  }
  if (work.kind == ADD_HALF)
    for (size_t index = 0; index < work.count; index++)
      ((float *)work.target)[index] = ((const unsigned char *)work.source)[index] + 0.5f;
}

static int put(Stream *stream, Work work) {
  if (stream && stream->capturing) {
    Graph *graph = stream->graph;
    graph->works = realloc(graph->works, (graph->count + 1) * sizeof(Work));
    graph->works[graph->count++] = work;
  } else {
    do_work(work);
  }
  return SUCCESS;
}

static void *allocate(size_t size) { size_t *block = malloc(size + 64); block[0] = size; return (char *)block + 64; }
static size_t release(void *memory) { size_t *block = (size_t *)((char *)memory - 64), size = block[0]; free(block); return size; }

/* What stands for an engine's kernel: float32 target[i] = uint8 source[i] + 0.5. */
int simulated_add_half(Stream *stream, float *target, const unsigned char *source, size_t count) {
  REQUIRE_CONTEXT;
  return put(stream, (Work){ADD_HALF, target, source, count});
}

int cuInit(unsigned flags) { static int begun; if (!begun++) atexit(report); return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device, int index) { *device = 0; return SUCCESS; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "simulated driver"); return SUCCESS; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 8; *minor = 6; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == MAJOR ? 8 : attribute == MINOR ? 6 : 1;
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { COUNT(retained, 1); *context = &primary; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { COUNT(retained, -1); return SUCCESS; }
int cuCtxPushCurrent_v2(void *context) { contexts[depth++] = context; return SUCCESS; }
int cuCtxPopCurrent_v2(void **context) {
  if (!depth) return INVALID_CONTEXT;
  depth--;
  if (context) *context = contexts[depth];
  return SUCCESS;
}
int cuCtxGetCurrent(void **context) { *context = depth ? contexts[depth - 1] : 0; return SUCCESS; }
int cuCtxGetDevice(int *device) { REQUIRE_CONTEXT; *device = 0; return SUCCESS; }
int cuCtxSynchronize(void) { REQUIRE_CONTEXT; return SUCCESS; }

int cuMemGetInfo_v2(size_t *available, size_t *total) {
  REQUIRE_CONTEXT;
  *total = CAPACITY;
  *available = CAPACITY - device_bytes;
  return SUCCESS;
}
int cuMemAlloc_v2(address *memory, size_t size) {
  REQUIRE_CONTEXT;
  if (size + device_bytes > CAPACITY) return OUT_OF_MEMORY;
  *memory = (address)allocate(size);
  COUNT(device_bytes, size);
  return SUCCESS;
}
int cuMemFree_v2(address memory) { REQUIRE_CONTEXT; COUNT(device_bytes, -(long)release((void *)memory)); return SUCCESS; }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
  REQUIRE_CONTEXT;
  *memory = allocate(size);
  COUNT(host_bytes, size);
  return SUCCESS;
}
int cuMemFreeHost(void *memory) { REQUIRE_CONTEXT; COUNT(host_bytes, -(long)release(memory)); return SUCCESS; }
int cuMemcpyHtoDAsync_v2(address target, const void *source, size_t size, Stream *stream) {
  REQUIRE_CONTEXT;
  return put(stream, (Work){COPY, (void *)target, source, size});
}
int cuMemcpyDtoHAsync_v2(void *target, address source, size_t size, Stream *stream) {
  REQUIRE_CONTEXT;
  return put(stream, (Work){COPY, target, (void *)source, size});
}

int cuStreamCreate(Stream **stream, unsigned flags) {
  REQUIRE_CONTEXT;
  *stream = calloc(1, sizeof(Stream));
  (*stream)->flags = flags;
  COUNT(streams, 1);
  return SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) { REQUIRE_CONTEXT; free(stream); COUNT(streams, -1); return SUCCESS; }
int cuStreamSynchronize(Stream *stream) {
  REQUIRE_CONTEXT;
  if (!stream || !stream->capturing) return SUCCESS;
  stream->invalid = 1;
  return CAPTURE_UNSUPPORTED;
}

int cuEventCreate(Event **event, unsigned flags) { REQUIRE_CONTEXT; *event = calloc(1, sizeof(Event)); COUNT(events, 1); return SUCCESS; }
int cuEventDestroy_v2(Event *event) { REQUIRE_CONTEXT; free(event); COUNT(events, -1); return SUCCESS; }
int cuEventRecord(Event *event, Stream *stream) { REQUIRE_CONTEXT; return put(stream, (Work){STAMP, event, 0, 0}); }
int cuEventSynchronize(Event *event) { REQUIRE_CONTEXT; return SUCCESS; }
int cuEventElapsedTime_v2(float *milliseconds, Event *start, Event *stop) {
  REQUIRE_CONTEXT;
  *milliseconds = (float)(stop->at - start->at);
  return SUCCESS;
}
int cuEventElapsedTime(float *milliseconds, Event *start, Event *stop) { return cuEventElapsedTime_v2(milliseconds, start, stop); }

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
  REQUIRE_CONTEXT;
  if (!(stream->flags & NON_BLOCKING) || stream->capturing) return CAPTURE_UNSUPPORTED;
  if (mode != THREAD_LOCAL) return INVALID_VALUE;
  stream->capturing = 1;
  stream->invalid = 0;
  stream->graph = calloc(1, sizeof(Graph));
  return SUCCESS;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
  REQUIRE_CONTEXT;
  if (!stream->capturing) return INVALID_VALUE;
  stream->capturing = 0;
  *graph = stream->invalid ? 0 : stream->graph;
  if (!*graph) return CAPTURE_INVALIDATED;
  COUNT(graphs, 1);
  return SUCCESS;
}
int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
  REQUIRE_CONTEXT;
  *executable = malloc(sizeof(Graph));
  (*executable)->count = graph->count;
  (*executable)->works = malloc(graph->count * sizeof(Work) + 1);
  memcpy((*executable)->works, graph->works, graph->count * sizeof(Work));
  COUNT(executables, 1);
  return SUCCESS;
}
int cuGraphLaunch(Graph *executable, Stream *stream) {
  REQUIRE_CONTEXT;
  for (int index = 0; index < executable->count; index++) put(stream, executable->works[index]);
  return SUCCESS;
}
int cuGraphDestroy(Graph *graph) { free(graph->works); free(graph); COUNT(graphs, -1); return SUCCESS; }
int cuGraphExecDestroy(Graph *executable) { free(executable->works); free(executable); COUNT(executables, -1); return SUCCESS; }

int cuGetErrorName(int code, const char **text) { *text = "simulated"; return SUCCESS; }
int cuGetErrorString(int code, const char **text) {
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == INVALID_CONTEXT ? "invalid device context"
        : code == CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing" : "not simulated";
  return SUCCESS;
}
int cuProfilerInitialize(const char *config, const char *output, int mode) { return SUCCESS; }
int cuProfilerStart(void) { return SUCCESS; }
int cuProfilerStop(void) { return SUCCESS; }
