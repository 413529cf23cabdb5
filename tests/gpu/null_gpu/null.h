// A GPU that computes nothing: what all of its libraries share.
//
// Every function counts its calls and can be told to fail, so each one begins with CALL() or, where
// it returns no code, with COUNT(). The variables that steer them stand in null.c.
#pragma once
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct call {
    const char *library, *name;
    long count;
    struct call *next;
};

int null_enter(struct call *call); // counts a call; the code to fail with, else 0
int null_gpus(void);               // how many GPUs there are, after CUDA_VISIBLE_DEVICES
int null_attribute(int attribute); // of a card, by CUdevice_attribute
const char *null_name(void);       // of a card
const char *null_error_name(int code);
const char *null_error_text(int code);
void null_say(const char *variable, const char *format, ...); // on stderr, where a variable is set

#define COUNT()                                                                                    \
    do {                                                                                           \
        static struct call call_ = {LIBRARY, __func__};                                            \
        null_enter(&call_);                                                                        \
    } while (0)
#define CALL()                                                                                     \
    do {                                                                                           \
        static struct call call_ = {LIBRARY, __func__};                                            \
        int code_ = null_enter(&call_);                                                            \
        if (code_)                                                                                 \
            return code_;                                                                          \
    } while (0)

// A function that does nothing, one that makes a handle, and one that writes a number.
#define DOES_NOTHING(function)                                                                     \
    int function() {                                                                               \
        CALL();                                                                                    \
        return 0;                                                                                  \
    }
#define MAKES_HANDLE(function)                                                                     \
    int function(void **handle) {                                                                  \
        CALL();                                                                                    \
        *handle = calloc(1, 64);                                                                   \
        return 0;                                                                                  \
    }
#define GIVES(function, type, value)                                                               \
    int function(type *result) {                                                                   \
        CALL();                                                                                    \
        *result = value;                                                                           \
        return 0;                                                                                  \
    }
