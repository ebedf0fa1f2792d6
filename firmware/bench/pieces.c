// Pieces of work for the guest that measures, and the clock around all of them.
// `time NAME COMMAND...` runs a command and says how many milliseconds it took of the
// monotonic clock, and of the processor.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int measure(char **command)
{
    printf("BENCH-BEGIN %s\n", command[0]);
    fflush(stdout);
    double start = now();
    pid_t child = fork();
    if (child == 0) {
        freopen("/dev/null", "w", stdout);
        execvp(command[1], command + 1);
        _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    struct rusage used;
    getrusage(RUSAGE_CHILDREN, &used);
    double cpu = (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e3 +
                 (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e3;
    printf("BENCH-END %s %.3f %.3f %d\n", command[0], now() - start, cpu, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    fflush(stdout);
    return 0;
}

static int forks(int count)
{
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        waitpid(child, NULL, 0);
    }
    return 0;
}

// A byte goes to and fro between two processes.
static int pipes(int count)
{
    int there[2], back[2];
    if (pipe(there) || pipe(back)) return 1;
    pid_t child = fork();
    char byte = 1;
    if (child == 0) {
        for (int i = 0; i < count; i++)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1) _exit(1);
        _exit(0);
    }
    for (int i = 0; i < count; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 1;
    waitpid(child, NULL, 0);
    return 0;
}

static int copies(int count)
{
    size_t bytes = 1 << 20;
    char *from = malloc(bytes + 64), *to = malloc(bytes + 64);
    if (!from || !to) return 1;
    memset(from, 5, bytes);
    for (int i = 0; i < count; i++) {
        memcpy(to + (i & 31), from, bytes);
        from[i & 1023] ^= to[bytes / 2];
    }
    return to[2000] == 5 ? 0 : 1;
}

static int matrix(int size)
{
    double *a = malloc(sizeof(double) * size * size), *b = malloc(sizeof(double) * size * size);
    double *c = calloc((size_t)size * size, sizeof(double));
    if (!a || !b || !c) return 1;
    for (int i = 0; i < size * size; i++) a[i] = i % 7 * 0.5, b[i] = i % 11 * 0.25;
    for (int round = 0; round < 8; round++)
        for (int i = 0; i < size; i++)
            for (int k = 0; k < size; k++) {
                double x = a[i * size + k];
                for (int j = 0; j < size; j++) c[i * size + j] += x * b[k * size + j];
            }
    double sum = 0;
    for (int i = 0; i < size * size; i++) sum += c[i];
    printf("%.6f\n", sum);
    return 0;
}

// 2 to the power of `bits` less one, in decimal.
static int ones(int bits)
{
    uint8_t digits[1024] = {1};
    for (int i = 0; i < bits; i++)
        for (int d = 0, carry = 0; d < 1024; d++) {
            int value = digits[d] * 2 + carry;
            digits[d] = value % 10;
            carry = value / 10;
        }
    digits[0]--;
    int top = 1023;
    while (top > 0 && !digits[top]) top--;
    for (; top >= 0; top--) putchar('0' + digits[top]);
    putchar('\n');
    return 0;
}

int main(int count, char **words)
{
    if (count > 3 && !strcmp(words[1], "time")) return measure(words + 2);
    if (count != 3) return 2;
    int number = atoi(words[2]);
    if (!strcmp(words[1], "fork")) return forks(number);
    if (!strcmp(words[1], "pipe")) return pipes(number);
    if (!strcmp(words[1], "copy")) return copies(number);
    if (!strcmp(words[1], "matrix")) return matrix(number);
    if (!strcmp(words[1], "ones")) return ones(number);
    return 2;
}
