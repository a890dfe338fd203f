#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The compiler through ccache: `ccache.sh CCACHE COMPILER...`.
#
# A precompiled header itself is always made anew: ccache takes one whose sources differ in a
# comment for the same, and clang then refuses it, because it compares their sizes.  Each time it
# comes out the same (-fno-pch-timestamp), so what is compiled with it is found in the cache.
ccache=$1
shift
case "$*" in
  *-emit-pch*) exec "$@" ;;
esac
CCACHE_SLOPPINESS=pch_defines,time_macros exec "$ccache" "$@"
