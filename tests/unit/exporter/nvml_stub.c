/* A driver for tests: libnvidia-ml.so.1 with the few calls that the exporter makes. NVML_STUB picks what it is like. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int is(const char *what) { const char *mode = getenv("NVML_STUB"); return mode && strstr(mode, what) != NULL; }

int nvmlInitWithFlags(unsigned flags) { return is("no-driver") ? 9 : 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "stub"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index == 1 && is("lost")) return 15;
    *handle = (void *)(long)(index + 1);
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%ld", (long)handle);
    return 0;
}
struct v1 { unsigned long long total, free, used; };
struct v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo(void *handle, struct v1 *m) { m->total = 100; m->free = 30; m->used = 70; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *handle, struct v2 *m) {
    if (is("old")) return 3;
    m->total = 100; m->reserved = 10; m->free = 30; m->used = 60;
    return 0;
}
