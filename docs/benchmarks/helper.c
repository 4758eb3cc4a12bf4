/* What the benchmark runs as a service, small enough that its own start is not what is measured.
 *
 *   helper mark FILE      writes the wall clock in nanoseconds to FILE, then sleeps
 *   helper now FILE       as mark, and ends
 *   helper sleep          sleeps
 *   helper slow MS        takes MS milliseconds to obey SIGTERM
 *   helper spam BYTES     writes BYTES bytes of lines, as fast as they are taken
 *   helper bare BYTES OUT copies the same from a pseudo terminal to OUT by a bare read-write loop; prints seconds
 *   helper again COMMAND… runs a command, prints its number, and runs it again whenever it has ended
 *   helper relay N        passes a byte through N processes, 300 times; prints median and p99 in milliseconds
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static long slow_ms;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void on_term(int signal) {
    (void)signal;
    struct timespec t = {slow_ms / 1000, slow_ms % 1000 * 1000000};
    nanosleep(&t, NULL);
    _exit(0);
}

static void spam(long bytes) {
    char block[4096];
    memset(block, 'x', sizeof block);
    for (size_t i = 79; i < sizeof block; i += 80) block[i] = '\n';
    while (bytes > 0) {
        ssize_t count = write(1, block, bytes < (long)sizeof block ? (size_t)bytes : sizeof block);
        if (count < 0 && errno != EINTR) _exit(1);
        if (count > 0) bytes -= count;
    }
}

static int bare(long bytes, const char *path) {
    int master, slave;
    struct termios settings;
    if (openpty(&master, &slave, NULL, NULL, NULL) < 0) return 1;
    tcgetattr(slave, &settings);
    settings.c_oflag &= ~OPOST;
    tcsetattr(slave, TCSANOW, &settings);
    int out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, 0600);
    double began = now(CLOCK_MONOTONIC);
    pid_t child = fork();
    if (child == 0) {
        dup2(slave, 1);
        close(master);
        spam(bytes);
        _exit(0);
    }
    char buffer[4096];
    for (long seen = 0; seen < bytes;) {
        ssize_t count = read(master, buffer, sizeof buffer);
        if (count <= 0) break;
        if (write(out, buffer, count) != count) return 1;
        seen += count;
    }
    waitpid(child, NULL, 0);
    printf("%.6f\n", now(CLOCK_MONOTONIC) - began);
    return 0;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int relay(int processes) {
    enum { ROUNDS = 300 };
    static double times[ROUNDS];
    int first, last, ends[2];
    if (pipe(ends) < 0) return 1;
    first = ends[1], last = ends[0];
    for (int i = 0; i < processes; i++) {
        if (pipe(ends) < 0) return 1;
        if (fork() == 0) {
            char byte;
            close(first), close(ends[0]);
            while (read(last, &byte, 1) == 1)
                if (write(ends[1], &byte, 1) != 1) break;
            _exit(0);
        }
        close(last), close(ends[1]);
        last = ends[0];
    }
    fcntl(last, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < ROUNDS; i++) {
        char byte = 'x';
        usleep(20000);
        double began = now(CLOCK_MONOTONIC);
        if (write(first, &byte, 1) != 1) return 1;
        /* As figures.py looks for an exit. */
        while (read(last, &byte, 1) != 1) usleep(200);
        times[i] = now(CLOCK_MONOTONIC) - began;
    }
    qsort(times, ROUNDS, sizeof *times, ascending);
    printf("%f %f\n", times[ROUNDS / 2] * 1e3, times[ROUNDS * 99 / 100 - 1] * 1e3);
    return 0;
}

/* The smallest supervisor there can be: what it needs to run something again, nobody can do without. */
static int again(char **command) {
    for (;;) {
        pid_t child;
        if (posix_spawnp(&child, command[0], NULL, NULL, command, environ)) return 1;
        printf("%d\n", child);
        fflush(stdout);
        waitpid(child, NULL, 0);
    }
}

int main(int count, char **args) {
    const char *mode = count > 1 ? args[1] : "";
    const int is_now = !strcmp(mode, "now");
    if ((is_now || !strcmp(mode, "mark")) && count > 2) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        int file = open(args[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dprintf(file, "%lld%09ld", (long long)t.tv_sec, t.tv_nsec);
        close(file);
        if (is_now) return 0;
    } else if (!strcmp(mode, "slow") && count > 2) {
        slow_ms = atol(args[2]);
        signal(SIGTERM, on_term);
    } else if (!strcmp(mode, "spam") && count > 2) {
        spam(atol(args[2]));
        return 0;
    } else if (!strcmp(mode, "bare") && count > 3) {
        return bare(atol(args[2]), args[3]);
    } else if (!strcmp(mode, "again") && count > 2) {
        return again(args + 2);
    } else if (!strcmp(mode, "relay") && count > 2) {
        return relay(atoi(args[2]));
    } else if (strcmp(mode, "sleep")) {
        return 2;
    }
    for (;;) pause();
}
