/* A driver for tests: libnvidia-ml.so.1 with the few calls that the exporter makes. NVML_STUB picks what it is like:
   no-driver, forbidden (no permission for anything), lost (the second GPU), old, mig (the second GPU is partitioned),
   secret (no memory of a process), hidden (no process is shown), mute (processes are not told at all), gone (after the
   first look), full (a real size for every number). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9, GPU_IS_LOST = 15 };
enum { PART = 16 }; /* handles from here on are parts of a GPU */

static int is(const char *what) { const char *mode = getenv("NVML_STUB"); return mode && strstr(mode, what) != NULL; }
static unsigned long long size(void) { return is("full") ? 1ULL << 30 : 1; }
static int looks;

int nvmlInitWithFlags(unsigned flags) { return is("no-driver") ? NOT_LOADED : is("forbidden") ? NO_PERMISSION : 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "stub"; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return is("gone") && looks++ ? NOT_LOADED : 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index == 1 && is("lost")) return GPU_IS_LOST;
    *handle = (void *)(long)(index + 1);
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    *count = is("mig") && (long)handle == 2 ? 3 : 0;
    return 0;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    if (index == 1) return NOT_FOUND; /* nothing is in this place */
    *part = (void *)(long)(PART + index);
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    long number = (long)handle;
    snprintf(uuid, length, number < PART ? "GPU-%ld" : "MIG-%ld", number < PART ? number : number - PART);
    return 0;
}

static int refuses(void *handle) { return is("mig") && (long)handle == 2 ? NOT_SUPPORTED : 0; }
struct v1 { unsigned long long total, free, used; };
struct v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo(void *handle, struct v1 *m) {
    m->total = 100 * size(); m->free = 30 * size(); m->used = 70 * size();
    return refuses(handle);
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, struct v2 *m) {
    if (is("old")) return NOT_SUPPORTED;
    m->total = 100 * size(); m->reserved = 10 * size(); m->free = 30 * size(); m->used = 60 * size();
    return refuses(handle);
}

struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *found) {
    if (is("mute")) return NO_PERMISSION;
    if (is("hidden")) { *count = 0; return 0; }
    if (*count < 2) { *count = 2; return TOO_SMALL; }
    *count = 2;
    for (int i = 0; i < 2; i++) {
        found[i].pid = 100 + i;
        found[i].memory = is("secret") && i ? ~0ULL : (40 + 10 * i) * size();
    }
    return 0;
}
