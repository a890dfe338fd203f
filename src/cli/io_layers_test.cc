// SPDX-License-Identifier: Apache-2.0
#include "cli/io_layers.h"

#include <gtest/gtest.h>

#include <utility>

namespace byre {
namespace {

IoLayer planned(IoOpen open) {
  Result<IoLayer> layer = plan_io_layers(open);
  if (layer) return *std::move(layer);
  ADD_FAILURE() << open.path << ": " << layer.error().message();
  return {};
}
std::string not_planned(IoOpen open) {
  const Result<IoLayer> layer = plan_io_layers(open);
  if (!layer) return layer.error().message();
  ADD_FAILURE() << open.path << " is accepted";
  return {};
}
IoOpen options(std::string text) { return {.path = std::move(text), .image_opts = true}; }

TEST(IoLayers, APathIsAFileUnderItsFormat) {
  const IoLayer layer = planned({.path = "a.qcow2", .format = "qcow2"});
  EXPECT_EQ(layer.driver, IoLayer::Driver::qcow2);
  EXPECT_EQ(layer.below->driver, IoLayer::Driver::file);
  EXPECT_EQ(layer.below->file_name, "a.qcow2");
  EXPECT_EQ(planned({.path = "a"}).driver, IoLayer::Driver::probe);
  EXPECT_EQ(not_planned({.path = "a", .format = "vmdk"}), "Unknown driver 'vmdk'");
}

TEST(IoLayers, BlkdebugIsBetween) {
  const IoLayer layer = planned({.path = "blkdebug:conf:dir/a:b", .format = "qcow2"});
  EXPECT_EQ(layer.driver, IoLayer::Driver::qcow2);
  EXPECT_EQ(layer.below->driver, IoLayer::Driver::blkdebug);
  EXPECT_EQ(layer.below->fault_config, "conf");
  EXPECT_EQ(layer.below->below->file_name, "dir/a:b");
  EXPECT_EQ(planned({.path = "blkdebug::a"}).below->fault_config, "");
  not_planned({.path = "blkdebug:a"});
}

TEST(IoLayers, OptionsAreATree) {
  const IoLayer layer = planned(
      options("driver=qcow2,discard=ignore,read-only=on,cache.direct=on,file.driver=blkdebug,"
              "file.config=conf,file.image.filename=a,,b,file.inject-error.0.event=l1_update,"
              "file.inject-error.0.iotype=flush,file.inject-error.0.once=on,"
              "file.inject-error.1.event=none,file.set-state.0.event=read_aio,file.set-state.0.new_"
              "state=2"));
  EXPECT_EQ(layer.driver, IoLayer::Driver::qcow2);
  EXPECT_EQ(layer.discard, DiscardPolicy::ignore);
  EXPECT_EQ(layer.read_only, true);
  EXPECT_EQ(layer.direct, true);
  const IoLayer& faults = *layer.below;
  EXPECT_EQ(faults.driver, IoLayer::Driver::blkdebug);
  EXPECT_EQ(faults.below->file_name, "a,b");
  ASSERT_EQ(faults.faults.inject_errors.size(), 2u);
  EXPECT_EQ(faults.faults.inject_errors[0].event, FaultEvent::l1_update);
  EXPECT_EQ(faults.faults.inject_errors[0].io, FaultIo::flush);
  EXPECT_TRUE(faults.faults.inject_errors[0].once);
  ASSERT_EQ(faults.faults.set_states.size(), 1u);
  EXPECT_EQ(faults.faults.set_states[0].new_state, 2u);
}

TEST(IoLayers, AFilterMayBeOnTop) {
  const IoLayer layer =
      planned(options("driver=blkdebug,image.driver=qcow2,image.file.filename=a"));
  EXPECT_EQ(layer.driver, IoLayer::Driver::blkdebug);
  EXPECT_EQ(layer.below->driver, IoLayer::Driver::qcow2);
  EXPECT_EQ(layer.below->below->file_name, "a");
}

TEST(IoLayers, OptionsBesideAPathNameItsFileLast) {
  const IoLayer layer = planned({.path = "a", .options = "file.driver=blkdebug"});
  EXPECT_EQ(layer.driver, IoLayer::Driver::probe);
  EXPECT_EQ(layer.below->driver, IoLayer::Driver::blkdebug);
  EXPECT_EQ(layer.below->below->file_name, "a");
}

TEST(IoLayers, AnImageIsRunAsItIsTold) {
  const IoLayer layer = planned(options(
      "driver=qcow2,file.filename=a,lazy-refcounts=on,cache-size=2M,l2-cache-size=1M,"
      "discard-no-unref=on,l2-cache-entry-size=4096,pass-discard-other=on,overlap-check=all"));
  EXPECT_EQ(layer.runtime.lazy_refcounts, true);
  EXPECT_EQ(layer.runtime.table_cache_size, 1 * MiB);
  EXPECT_TRUE(layer.runtime.discard_keeps);
  EXPECT_EQ(planned({.path = "a", .options = "cache-size=64k"}).runtime.table_cache_size, 64 * KiB);
  for (const char* text :
       {"lazy-refcounts=maybe", "cache-size=1", "refcount-cache-size=1M", "l2-cache-entry-size=64k",
        "cache-clean-interval=60", "pass-discard-request=off", "overlap-check=none",
        "l2-cache-size=2M,cache-size=1M"}) {
    not_planned({.path = "a", .options = text});
    not_planned({.path = "a", .format = "raw", .options = text});
  }
}

TEST(IoLayers, WhatIsNotKnownIsRefused) {
  EXPECT_EQ(not_planned(options("driver=qcow2")), "A block device must be specified for \"file\"");
  EXPECT_EQ(not_planned(options("a")), "Must specify either driver or file");
  EXPECT_EQ(not_planned(options("driver=foo,file.filename=a")), "Unknown driver 'foo'");
  EXPECT_EQ(not_planned(options("driver=qcow2,file=a")),
            "Cannot find device='a' nor node-name='a'");
  for (const char* text :
       {"driver=qcow2,file.filename=a,foo=1", "driver=qcow2,file.filename=a,file.foo=1",
        "driver=qcow2,file.filename=a,backing=b", "driver=qcow2,file.filename=a,cache.foo=1",
        "driver=qcow2,file.filename=a,cache.no-flush=on", "driver=qcow2,file.filename=a,discard=x",
        "driver=qcow2,file.driver=blkdebug,file.image.filename=a,file.inject-error.0.errno=5",
        "driver=qcow2,file.driver=blkdebug,file.image.filename=a,file.inject-error.0.a.b=5",
        "driver=blkdebug,image.filename=a,align=512", "driver=file", ",", ""}) {
    not_planned(options(text));
  }
  not_planned({.path = "json:{}"});
}

}  // namespace
}  // namespace byre
