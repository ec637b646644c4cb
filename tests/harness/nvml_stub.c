/* A stand-in for libnvidia-ml.so.1: the functions pynvml calls for the profiler, for one GPU.
 *
 * STUB_NVML in the environment chooses what it is: "healthy", "container" (no process is listed),
 * "hidden" (processes are listed without their memory) or "mismatch" (library and driver differ).
 * Values rise with every call, from the second on.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 18 };

#define GIB (1ULL << 30)
#define UUID "GPU-00000000-5b1e-4c3d-8a2f-0123456789ab"

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_t;

static int device;
static int open_count;
static int memory_calls;
static int process_calls;

static int is(const char *mode)
{
    const char *chosen = getenv("STUB_NVML");
    return chosen != NULL && strcmp(chosen, mode) == 0;
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    if (is("mismatch"))
        return VERSION_MISMATCH;
    open_count++;
    memory_calls = process_calls = 0;
    return SUCCESS;
}

int nvmlShutdown(void)
{
    open_count--;
    return SUCCESS;
}

/* Not NVML's: lets the test see that every init was followed by a shutdown. */
int stub_open_count(void) { return open_count; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    *handle = &device;
    return strcmp(uuid, UUID) == 0 ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory)
{
    (void)handle;
    memory->total = 8 * GIB;
    memory->used = memory_calls++ == 0 ? 1 * GIB : 3 * GIB;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_t *found)
{
    (void)handle;
    if (is("container")) {
        *count = 0;
        return SUCCESS;
    }
    if (found == NULL) {
        *count = 2;
        return INSUFFICIENT_SIZE;
    }
    *count = 2;
    memset(found, 0, 2 * sizeof *found);
    found[0].pid = 1;
    found[0].used = 5 * GIB;
    found[1].pid = (unsigned int)getpid();
    found[1].used = process_calls++ == 0 ? GIB / 2 : 2 * GIB;
    if (is("hidden"))
        found[0].used = found[1].used = ~0ULL;
    return SUCCESS;
}
