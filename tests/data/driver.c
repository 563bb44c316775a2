/* A stand-in for NVIDIA's driver library that does all work at once on the host: with it the tests run the
 * program's GPU calibration from end to end on any machine. It supports CUDA 12.2 and knows only what such
 * a driver has. Variables of the environment set how many devices there are and what goes wrong.
 *
 * The names and types are those of cuda.h; a result of 0 is success. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int Result;
typedef int Device;
typedef unsigned long long Pointer;
typedef void *Handle;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500, NOT_READY = 600 };

static Handle current;

static int devices(void) {
    const char *count = getenv("STAND_IN_DEVICES");
    return count ? atoi(count) : 1;
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

Result cuInit(unsigned flags) { (void)flags; return 0; }
Result cuDriverGetVersion(int *version) { *version = 12020; return 0; }
Result cuDeviceGetCount(int *count) { *count = devices(); return 0; }
Result cuDeviceGet(Device *device, int ordinal) {
    if (ordinal >= devices()) return INVALID_DEVICE;
    *device = ordinal;
    return 0;
}
Result cuDeviceGetName(char *name, int length, Device device) {
    snprintf(name, (size_t)length, "Stand-in %d", device);
    return 0;
}
Result cuDeviceTotalMem_v2(size_t *bytes, Device device) { (void)device; *bytes = 1ull << 34; return 0; }
Result cuDeviceGetAttribute(int *value, int attribute, Device device) {
    (void)device;
    switch (attribute) {
    case 75: *value = 9; break;   /* compute capability, major */
    case 76: *value = 0; break;   /* minor */
    case 16: *value = 132; break; /* multiprocessors */
    case 40: *value = 3; break;   /* copy engines */
    default: *value = 1;
    }
    return 0;
}
Result cuDeviceGetPCIBusId(char *text, int length, Device device) {
    snprintf(text, (size_t)length, "FFFF:%02X:00.0", device + 1);
    return 0;
}
Result cuDeviceCanAccessPeer(int *can, Device one, Device other) { *can = one != other; return 0; }
Result cuDevicePrimaryCtxRetain(Handle *context, Device device) { *context = (Handle)(intptr_t)(device + 1); return 0; }
Result cuDevicePrimaryCtxRelease_v2(Device device) { (void)device; return 0; }
Result cuCtxGetCurrent(Handle *context) { *context = current; return 0; }
Result cuCtxSetCurrent(Handle context) { current = context; return 0; }
Result cuCtxSynchronize(void) { return 0; }
Result cuCtxEnablePeerAccess(Handle context, unsigned flags) { (void)context; (void)flags; return 0; }
Result cuStreamCreate(Handle *stream, unsigned flags) { (void)flags; *stream = malloc(1); return 0; }
Result cuStreamDestroy_v2(Handle stream) { free(stream); return 0; }
Result cuStreamSynchronize(Handle stream) { (void)stream; return 0; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { (void)stream; (void)event; (void)flags; return 0; }
Result cuEventCreate(Handle *event, unsigned flags) { (void)flags; *event = calloc(1, sizeof(double)); return 0; }
Result cuEventDestroy_v2(Handle event) { free(event); return 0; }
Result cuEventRecord(Handle event, Handle stream) { (void)stream; *(double *)event = milliseconds(); return 0; }
Result cuEventSynchronize(Handle event) { (void)event; return 0; }
/* Asked of what runs beside timed work: it always still does. */
Result cuEventQuery(Handle event) { (void)event; return NOT_READY; }
Result cuEventElapsedTime(float *elapsed, Handle start, Handle end) {
    *elapsed = (float)(*(double *)end - *(double *)start);
    return 0;
}
Result cuModuleLoadData(Handle *module, const char *text) {
    if (!strstr(text, ".version")) return INVALID_IMAGE;
    *module = malloc(1);
    return 0;
}
Result cuModuleUnload(Handle module) { free(module); return 0; }
Result cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    if (strcmp(name, "optpipe_gate") != 0) return NOT_FOUND;
    *function = module;
    return 0;
}
Result cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Handle stream, void **parameters, void **extra) {
    (void)function; (void)stream; (void)extra; (void)shared;
    /* One thread that waits for a word, and not for ever. */
    if (gx * gy * gz * bx * by * bz != 1) return INVALID_VALUE;
    if (*(uint64_t *)parameters[0] == 0 || *(uint64_t *)parameters[1] == 0) return INVALID_VALUE;
    return 0;
}
Result cuMemHostAlloc(void **start, size_t bytes, unsigned flags) {
    if (flags & 4) return INVALID_VALUE; /* write-combined: slow for the host to read */
    *start = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *start ? 0 : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void *start) { free(start); return 0; }
Result cuMemHostGetDevicePointer_v2(Pointer *device, void *host, unsigned flags) { (void)flags; *device = (Pointer)host; return 0; }
Result cuMemAlloc_v2(Pointer *start, size_t bytes) { *start = (Pointer)malloc(bytes); return *start ? 0 : OUT_OF_MEMORY; }
Result cuMemFree_v2(Pointer start) { free((void *)start); return 0; }
Result cuMemsetD8_v2(Pointer start, unsigned char byte, size_t bytes) { memset((void *)start, byte, bytes); return 0; }
Result cuMemcpyHtoD_v2(Pointer to, const void *from, size_t bytes) { memcpy((void *)to, from, bytes); return 0; }
Result cuMemcpyDtoH_v2(void *to, Pointer from, size_t bytes) { memcpy(to, (void *)from, bytes); return 0; }
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, Handle stream) {
    (void)stream;
    memcpy(to, (void *)from, bytes);
    return 0;
}
Result cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, Handle stream) {
    (void)stream;
    memcpy((void *)to, from, bytes);
    if (getenv("STAND_IN_DAMAGES")) ((char *)to)[bytes / 2] ^= 1;
    return 0;
}
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, Handle stream) {
    (void)stream;
    memcpy((void *)to, (void *)from, bytes);
    return 0;
}
Result cuMemcpyPeerAsync(Pointer to, Handle there, Pointer from, Handle here, size_t bytes, Handle stream) {
    (void)stream;
    if (there == here) return INVALID_VALUE;
    memcpy((void *)to, (void *)from, bytes);
    return 0;
}
Result cuGetErrorName(Result result, const char **name) { (void)result; *name = "STAND_IN_ERROR"; return 0; }
Result cuGetErrorString(Result result, const char **text) { (void)result; *text = "the stand-in refuses"; return 0; }
