// Shared by all libraries of the null GPU, a GPU that computes nothing.
//
// Every function counts its calls and can be made to fail: it begins with CALL() or, if it returns
// no error code, with COUNT(). null.c lists the environment variables that control both.
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

int null_enter(struct call *call); // counts a call; returns the code to fail with, or 0
int null_gpus(void);               // number of GPUs that CUDA_VISIBLE_DEVICES shows
int null_attribute(int attribute); // attribute of a card, by its CUdevice_attribute
const char *null_name(void);       // name of a card
const char *null_error_name(int code);
const char *null_error_text(int code);
void null_say(const char *variable, const char *format, ...); // on stderr, if the variable is set

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

// Define a function that does nothing, makes a handle, or writes a number.
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
