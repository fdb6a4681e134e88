//! /proc/kallsyms: the few functions fwtrace asks for.
