// SPDX-License-Identifier: Apache-2.0
#include "job/device_tree.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

/// A tree in one line: driver{setting=value,...}(role: child, ...)
std::string told(const DeviceNode& node) {
  std::string text = node.driver ? std::string(node.driver->name) : "?";
  if (!node.node_name.empty()) text += cat("#", node.node_name);
  if (node.read_only) text += *node.read_only ? " ro" : " rw";
  if (node.discard) text += *node.discard == DiscardPolicy::unmap ? " unmap" : " ignore";
  if (node.direct) text += *node.direct ? " direct" : " cached";
  if (node.detect_zeroes == DetectZeroesMode::on) text += " zeroes";
  if (node.force_share) text += " shared";
  for (const Setting& setting : node.settings) {
    text += cat(" ", setting.name, "=");
    if (const auto* on = std::get_if<bool>(&setting.value)) text += *on ? "on" : "off";
    if (const auto* number = std::get_if<uint64_t>(&setting.value)) text += cat(*number);
    if (const auto* word = std::get_if<std::string>(&setting.value)) text += *word;
    if (const auto* rules = std::get_if<std::vector<OptionRule>>(&setting.value)) {
      text += cat(rules->size(), " rules");
    }
  }
  std::string children;
  for (const auto& [role, child] : node.children) {
    children += cat(children.empty() ? "" : ", ", role, ": ", child ? told(*child) : "none");
  }
  return children.empty() ? text : cat(text, " (", children, ")");
}
std::string told(const Result<DeviceTree>& tree) {
  return tree ? told(**tree) : cat("error: ", tree.error().message());
}
std::string json(std::string_view text) { return told(parse_device_name(cat("json:", text))); }
std::string opts(std::string_view text) { return told(parse_image_opts(text)); }
std::string beside(std::string_view path, std::string_view text) {
  return told(parse_device_name(path, std::nullopt, text));
}

TEST(DeviceTree, JsonNamesSayFileFormatAndBacking) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"driver": "qcow2", "file": {"driver": "file", "filename": "/a/b"}})",
       "qcow2 (file: file filename=/a/b)"},
      {R"({"driver":"qcow2","file":{"driver":"file","filename":"x"},"backing":null})",
       "qcow2 (backing: none, file: file filename=x)"},
      {R"({"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/sda"}})",
       "raw (file: host_device filename=/dev/sda)"},
      {R"({"driver":"raw","offset":512,"size":"1k","file":{"driver":"file","filename":"x"}})",
       "raw offset=512 size=1024 (file: file filename=x)"},
      {R"({"file": {"driver": "file", "filename": "x"}})", "? (file: file filename=x)"},
      {R"({"driver": "file", "filename": "x"})", "file filename=x"},
      {R"({"file.filename": "x", "driver": "qcow2"})", "qcow2 (file: file filename=x)"},
      {R"({'driver':'qcow2','file':{'filename':'it\'s "x"'}})",
       R"(qcow2 (file: file filename=it's "x"))"},
      {R"({"driver":"compress","file":{"driver":"qcow2","file":{"filename":"x"}}})",
       "compress (file: qcow2 (file: file filename=x))"},
      {R"({"driver":"raw","file":{"driver":"file","filename":"nbd:x"}})",
       "raw (file: file filename=nbd:x)"},
      {R"({"driver":"null-co","size":512,"read-zeroes":true,"latency-ns":10})",
       "null-co latency-ns=10 read-zeroes=on size=512"},
      {R"({"driver":"qcow2","file":{"driver":"null-co"},"backing":{"driver":"null-aio"}})",
       "qcow2 (backing: null-aio, file: null-co)"},
      {R"({"driver":"qcow2","file":{"filename":"a"},"data-file":{"filename":"b"}})",
       "qcow2 (data-file: file filename=b, file: file filename=a)"},
      {R"({"driver":"blkdebug","image":{"driver":"null-co"},
           "inject-error":[{"event":"read_aio"},{"event":"none","errno":28}]})",
       "blkdebug inject-error=2 rules (image: null-co)"},
      {R"({"driver":"qcow2","read-only":true,"discard":"unmap","detect-zeroes":"on",
           "force-share":true,"cache":{"direct":true,"no-flush":false},"node-name":"top",
           "file":{"filename":"x","locking":"off","aio":"native"}})",
       "qcow2#top ro unmap direct zeroes shared (file: file aio=native filename=x locking=off)"},
  };
  for (const auto& [text, want] : cases) EXPECT_EQ(json(text), want) << text;
}

TEST(DeviceTree, ANodeMayBeAServersDisk) {
  const std::pair<const char*, const char*> names[] = {
      {"nbd:unix:/s:exportname=x", "? (file: nbd export=x path=/s)"},
      {"nbd+unix:///a%20b?socket=s", "? (file: nbd export=a b path=s)"},
      {"nbd://host/x", "? (file: nbd export=x host=host port=10809)"},
      {"nbd:host:7", "? (file: nbd host=host port=7)"},
      {R"(json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"reconnect-delay":5})",
       "nbd reconnect-delay=5 server.path=/s server.type=unix"},
      {R"(json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"7"},"export":"x"})",
       "nbd export=x server.host=h server.port=7 server.type=inet"},
  };
  for (const auto& [name, want] : names) {
    EXPECT_TRUE(names_a_tree(name));
    EXPECT_EQ(told(parse_device_name(name)), want);
  }
  const std::pair<const char*, const char*> wrong[] = {
      {"driver=nbd", "one of path and host must be given"},
      {"driver=nbd,port=7", "port may not be used without host"},
      {"driver=nbd,path=a,host=b", "path and host may not be used at the same time"},
      {"driver=nbd,path=a,server.type=unix,server.path=a",
       "'server' and path/host/port options cannot be used at the same time"},
      {"driver=nbd,server.path=a", "Parameter 'server.type' is missing"},
      {"driver=nbd,server.type=unix", "Parameter 'server.path' is missing"},
      {"driver=nbd,server.type=inet,server.host=a", "Parameter 'server.port' is missing"},
      {"driver=nbd,host=a,port=70000", "'70000' is no port"},
      {"driver=nbd,path=a,open-timeout=1000001", "open-timeout has at most 1000000 seconds"},
      {"driver=nbd,path=a,tls-creds=x", "tls-creds is not supported: there is no TLS"},
      {"driver=nbd,path=a,tls-hostname=x", "tls-hostname is not supported: there is no TLS"},
      {"driver=nbd,path=a,x-dirty-bitmap=x",
       "x-dirty-bitmap is not supported: only base:allocation is asked for"},
      {"driver=nbd,path=a,what=x", "Block protocol 'nbd' doesn't support the option 'what'"},
  };
  for (const auto& [text, why] : wrong) EXPECT_EQ(opts(text), cat("error: ", why)) << text;
}

TEST(DeviceTree, OptionsSayTheSame) {
  const std::pair<const char*, const char*> cases[] = {
      {"driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=a,,b",
       "compress (file: qcow2 (file: file filename=a,b))"},
      {"driver=qcow2,file.filename=x,backing=", "qcow2 (backing: none, file: file filename=x)"},
      {"file.filename=x", "? (file: file filename=x)"},
      {"driver=file,filename=x,aio=native", "file aio=native filename=x"},
      {"driver=raw,offset=1M,file.driver=file,file.filename=x",
       "raw offset=1048576 (file: file filename=x)"},
      {"driver=qcow2,discard=ignore,read-only=on,cache.direct=on,file.driver=blkdebug,"
       "file.config=conf,file.x-image.filename=a,file.inject-error.0.event=l1_update,"
       "file.inject-error.1.event=none,file.set-state.0.event=read_aio",
       "qcow2 ro ignore direct (file: blkdebug inject-error=2 rules set-state=1 rules config=conf "
       "(image: file filename=a))"},
      {"driver=blkdebug,image.driver=qcow2,image.file.filename=a",
       "blkdebug (image: qcow2 (file: file filename=a))"},
      {"driver=qcow2,file.filename=a,lazy-refcounts=on,cache-size=2M,l2-cache-size=1M,"
       "discard-no-unref=on,l2-cache-entry-size=4096,pass-discard-other=true,overlap-check=all",
       "qcow2 cache-size=2097152 discard-no-unref=on l2-cache-entry-size=4096 "
       "l2-cache-size=1048576 lazy-refcounts=on overlap-check=all pass-discard-other=on (file: "
       "file filename=a)"},
  };
  for (const auto& [text, want] : cases) EXPECT_EQ(opts(text), want) << text;
}

TEST(DeviceTree, ANameIsAPathOrAProtocol) {
  EXPECT_EQ(told(parse_device_name("a.qcow2", "qcow2")), "qcow2 (file: file filename=a.qcow2)");
  EXPECT_EQ(told(parse_device_name("a")), "? (file: file filename=a)");
  EXPECT_EQ(told(parse_device_name("file:a:b")), "? (file: file filename=a:b)");
  EXPECT_EQ(told(parse_device_name("blkdebug:conf:dir/a:b", "qcow2")),
            "qcow2 (file: blkdebug config=conf (image: file filename=dir/a:b))");
  EXPECT_EQ(told(parse_device_name("blkdebug::a")), "? (file: blkdebug (image: file filename=a))");
  EXPECT_EQ(told(parse_device_name("null-co://")), "? (file: null-co)");
  for (const char* name : {"blkdebug:a", "null-co://1", "nbd:x", "nbds://x", "foo:bar", ""}) {
    EXPECT_FALSE(parse_device_name(name)) << name;
  }
  EXPECT_EQ(told(parse_device_name("a", "vhs")), "error: Unknown driver 'vhs'");
  EXPECT_EQ(told(parse_device_name("a", "vmdk")), "error: Driver 'vmdk' is not supported (yet)");
  EXPECT_EQ(told(parse_device_name("json:{\"driver\":\"raw\",\"file.filename\":\"x\"}", "raw")),
            "raw (file: file filename=x)");
  EXPECT_FALSE(parse_device_name("json:{\"driver\":\"raw\",\"file.filename\":\"x\"}", "qcow2"));
}

TEST(DeviceTree, OptionsBesideAPathUseItWhereAFileIsMissing) {
  EXPECT_EQ(beside("a", "file.driver=blkdebug"), "? (file: blkdebug (image: file filename=a))");
  EXPECT_EQ(beside("a", "driver=qcow2,file.locking=off"),
            "qcow2 (file: file filename=a locking=off)");
  EXPECT_EQ(beside("a", "driver=qcow2,backing.driver=null-co"),
            "qcow2 (backing: null-co, file: file filename=a)");
  EXPECT_EQ(beside("a", "file.filename=b"), "? (file: file filename=b)");
}

TEST(DeviceTree, WhatIsNotKnownIsAnErrorThatNamesIt) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"driver":"foo"})", "Unknown driver 'foo'"},
      {R"({"driver":"qcow2","file":{"driver":"vmdk","path":"x"}})",
       "Driver 'vmdk' is not supported (yet)"},
      {R"({"driver":"qcow2","foo":1,"file":{"filename":"x"}})",
       "Block format 'qcow2' does not support the option 'foo'"},
      {R"({"driver":"qcow2","file":{"driver":"file","filename":"x","foo":2}})",
       "Block protocol 'file' doesn't support the option 'foo'"},
      {R"({"driver":"qcow2","file":{"filename":"x"},"encrypt":{"foo":"luks"}})",
       "Block format 'qcow2' does not support the option 'encrypt.foo'"},
      {R"({"driver":"raw","backing":null,"file":{"filename":"x"}})",
       "Block format 'raw' does not support the option 'backing'"},
      {R"({"driver":"null-co","file":{"driver":"null-co"}})",
       "Block protocol 'null-co' doesn't support the option 'file.driver'"},
      {R"({"driver":"qcow2"})", "A block device must be specified for \"file\""},
      {R"({"driver":"compress"})", "A block device must be specified for \"file\""},
      {R"({"driver":"blkdebug"})", "A block device must be specified for \"image\""},
      {R"({"driver":"qcow2","file":null})", "A block device must be specified for \"file\""},
      {R"({"driver":"qcow2","file":"node"})", "Cannot find device='node' nor node-name='node'"},
      {R"({"driver":"raw","node-name":"a","file":"a"})",
       "Cannot find device='a' nor node-name='a'"},
      {R"({"driver":"raw","node-name":"a","file":{"driver":"null-co","node-name":"a"}})",
       "Duplicate nodes with node-name='a'"},
      {R"({"driver":"null-co","node-name":"1x"})", "Invalid node-name: '1x'"},
      {R"({})", "Must specify either driver or file"},
      {R"({"filename":"x"})", "Must specify either driver or file"},
      {R"({"driver":["qcow2"]})", "Must specify either driver or file"},
      {R"([])", "Invalid JSON object given"},
      {R"(5)", "Invalid JSON object given"},
      {R"()", "Could not parse the JSON options: Expecting a JSON value"},
      {R"({"driver")", "Could not parse the JSON options: JSON parse error"},
      {R"({"driver":"raw","driver":"raw"})", "Option 'driver' is given twice"},
      {R"({"file":{"a":"b"},"file":{"c":"d"}})", "duplicate key"},
      {R"({"file":{"filename":"b"},"file.filename":"d"})", "Option 'file.filename' is given twice"},
      {R"({"file":"x","file.filename":"d"})", "Option 'file.filename' is given twice"},
      {R"({"driver":"qcow2","lazy-refcounts":"maybe","file":{"filename":"x"}})",
       "Parameter 'lazy-refcounts' expects 'on' or 'off'"},
      {R"({"driver":"qcow2","lazy-refcounts":1,"file":{"filename":"x"}})",
       "Parameter 'lazy-refcounts' expects 'on' or 'off'"},
      {R"({"driver":"raw","offset":-5,"file":{"filename":"x"}})",
       "Value '-5' is out of range for parameter 'offset'"},
      {R"({"driver":"raw","offset":"many","file":{"filename":"x"}})",
       "Parameter 'offset' expects a non-negative number below 2^64"},
      {R"({"driver":"null-co","latency-ns":"x"})", "Parameter 'latency-ns' expects a number"},
      {R"({"driver":"null-co","discard":"x"})", "Invalid discard option"},
      {R"({"driver":"null-co","detect-zeroes":"x"})", "invalid parameter value: x"},
      {R"({"driver":"null-co","cache":{"direct":"x"}})",
       "Parameter 'cache.direct' expects 'on' or 'off'"},
      {R"({"driver":"null-co","cache":{"no-flush":true}})", "cache.no-flush=on is not supported"},
      {R"({"driver":"null-co","cache":{"foo":true}})", "cache.foo"},
      {R"({"driver":"file","filename":"x","locking":"x"})", "'locking' does not accept value 'x'"},
      {R"({"driver":"file","filename":"a\u0000b"})", "zero byte"},
      {R"({"driver":"file","filename":null})", "'filename' has no value"},
      {R"({"driver":"blkdebug","image":{"driver":"null-co"},"inject-error":5})",
       "Block protocol 'blkdebug' doesn't support the option 'inject-error'"},
      {R"({"driver":"blkdebug","image":{"driver":"null-co"},"inject-error.1.event":"read_aio"})",
       "Unused option '1.event' for [inject-error]"},
      {R"({"driver":"blkdebug","image":{"driver":"null-co"},"align":1000})", "a power of two"},
      {R"({"driver":"throttle","file":{"driver":"null-co"},"limits.bps-total-max":5})",
       "bps-total"},
      {R"({"driver":"preallocate","file":{"filename":"x"},"prealloc-align":0})", "prealloc-align"},
      {R"({"driver":"copy-before-write","file":{"filename":"x"}})", "target"},
      {R"({"driver":"copy-before-write","file":{"filename":"x"},"target":{"filename":"y"},"cbw-timeout":4294967296})",
       "'cbw-timeout' expects uint32_t"},
      {R"({"driver":"copy-before-write","file":{"filename":"x"},"target":{"filename":"y"},"bitmap":{"node":"x"}})",
       "'bitmap.name' is missing"},
      {R"({"driver":"blklogwrites","file":{"filename":"x"}})", "log"},
      {R"({"driver":"blkverify","test":{"filename":"x"}})", "raw"},
      {R"({"driver":"qcow2","file.filename":"x","refcount-cache-size":"1M"})",
       "refcount-cache-size is not supported"},
      {R"({"driver":"qcow2","file.filename":"x","overlap-check":"none"})",
       "overlap-check=none is not supported, only all"},
      {R"({"driver":"qcow2","file.filename":"x","pass-discard-request":false})",
       "pass-discard-request=off is not supported, only on"},
      {R"({"a..b":1,"driver":"null-co"})", "Invalid parameter 'a..b'"},
  };
  for (const auto& [text, want] : cases) {
    const std::string said = json(text);
    EXPECT_TRUE(said.starts_with("error: ")) << text << " " << said;
    EXPECT_NE(said.find(want), std::string::npos) << text << " " << said;
  }
  for (const char* text : {"", "a", "a=b", "driver=qcow2,file.filename=x,c", ",", "driver=raw,",
                           "driver=null-co,driver=null-co", "driver=qcow2,file=x"}) {
    EXPECT_FALSE(parse_image_opts(text)) << text;
  }
}

TEST(DeviceTree, HostileTextIsRefusedBeforeItCosts) {
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += R"({"driver":"raw","file":)";
  deep += R"({"driver":"null-co"})" + std::string(1000, '}');
  EXPECT_EQ(json(deep), "error: The options have more than 100 levels");
  EXPECT_EQ(json(std::string(500'000, '[')), "error: Invalid JSON object given");
  EXPECT_EQ(json("{\"a\":" + std::string(500'000, '[')),
            "error: The options have more than 100 levels");
  EXPECT_EQ(json(std::string(100 * MiB, ' ')),
            "error: The options take 104857600 bytes, at most 1048576");
  EXPECT_EQ(opts(std::string(100 * MiB, 'a')),
            "error: The options take 104857600 bytes, at most 1048576");

  std::string dots = "a";
  for (int i = 0; i < 1000; ++i) dots += ".a";
  EXPECT_EQ(opts(dots + "=1"), "error: The options have more than 100 levels");
  EXPECT_EQ(json(cat("{\"", dots, "\":1}")), "error: The options have more than 100 levels");

  std::string many = "{\"a\":[0";
  for (int i = 0; i < 100'000; ++i) many += ",0";
  EXPECT_EQ(json(many + "]}"), "error: There are more than 65536 options");
}

TEST(DeviceTree, AsDeepAsAllowedIsRead) {
  std::string text;
  for (int i = 0; i < 99; ++i) text += R"({"driver":"raw","file":)";
  const Result<DeviceTree> tree =
      parse_device_name(cat("json:", text, R"({"driver":"null-co"})", std::string(99, '}')));
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ((*tree)->height, 100u);
}

TEST(DeviceList, AChildMayReferToAnEarlierNode) {
  const std::string texts[] = {"driver=null-co,node-name=disk,size=1M",
                               R"({"driver":"raw","node-name":"part","offset":512,"file":"disk"})",
                               "driver=raw,node-name=top,file=part"};
  EXPECT_EQ(told(parse_device_list(texts, "top")),
            "raw#top (file: raw#part offset=512 (file: null-co#disk size=1048576))");
}

TEST(DeviceList, ANodeInsideOfATreeHasAName) {
  const std::string texts[] = {"driver=raw,node-name=a,file.driver=null-co,file.node-name=inner",
                               "driver=qcow2,node-name=top,file=a,backing=inner"};
  const Result<DeviceTree> tree = parse_device_list(texts, "top");
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ((*tree)->child("backing")->parents, 2u);
}

TEST(DeviceList, NamesAreThereOnceAndUsed) {
  const auto refused = [](std::vector<std::string> texts, std::string_view root) {
    return told(parse_device_list(texts, root));
  };
  EXPECT_EQ(refused({"driver=raw,node-name=a,file=b", "driver=null-co,node-name=b"}, "a"),
            "error: Cannot find device='b' nor node-name='b'")
      << "an earlier one";
  EXPECT_EQ(refused({"driver=null-co,node-name=a", "driver=null-co,node-name=a"}, "a"),
            "error: Duplicate nodes with node-name='a'");
  EXPECT_EQ(refused({"driver=null-co,node-name=a", "driver=null-co,node-name=b"}, "a"),
            "error: node-name='b' is used by nobody");
  EXPECT_EQ(refused({"driver=null-co,node-name=a"}, "b"),
            "error: Cannot find device='b' nor node-name='b'");
  EXPECT_EQ(refused({"driver=null-co"}, "b"),
            "error: 'node-name' must be specified for the root node");
  EXPECT_EQ(refused({"node-name=a"}, "a"), "error: Parameter 'driver' is missing");
  // Nobody can build more levels in steps.
  std::vector<std::string> texts = {"driver=null-co,node-name=n0"};
  for (int i = 1; i < 1000; ++i) {
    texts.push_back(cat("driver=raw,node-name=n", i, ",file=n", i - 1));
  }
  EXPECT_EQ(refused(texts, "n999"), "error: The devices have more than 100 levels");
}

/// The tree after a change, or why there was none; undone, it is what it was.
std::string changed(std::string_view tree, std::string_view change) {
  const Result<DeviceTree> parsed = parse_image_opts(tree);
  EXPECT_TRUE(parsed);
  const std::string before = told(parsed);
  Result<TreeChange> made = TreeChange::make(*parsed, *parse_option_list(change));
  const std::string after = made ? told(parsed) : cat("error: ", made.error().message());
  if (made) made->undo();
  EXPECT_EQ(told(parsed), before);
  return after;
}

TEST(TreeChange, SettingsChangeAndDevicesDoNot) {
  const std::string_view image = "driver=qcow2,lazy-refcounts=off,file.filename=x";
  EXPECT_EQ(changed(image, "lazy-refcounts=on"), "qcow2 lazy-refcounts=on (file: file filename=x)");
  EXPECT_EQ(changed(image, "l2-cache-size=1M,discard=ignore,file.cache.direct=on"),
            "qcow2 ignore lazy-refcounts=off l2-cache-size=1048576 (file: file direct filename=x)");
  EXPECT_EQ(changed(image, "detect-zeroes=on,read-only=on"),
            "qcow2 ro zeroes lazy-refcounts=off (file: file filename=x)");
  // As it is already.
  EXPECT_EQ(changed(image, "driver=qcow2,file.filename=x,file.driver=file,force-share=off"),
            told(parse_image_opts(image)));
  for (const auto& [change, key] : std::initializer_list<std::pair<const char*, const char*>>{
           {"driver=raw", "driver"},
           {"file.driver=raw", "driver"},
           {"file.filename=y", "filename"},
           {"node-name=a", "node-name"},
           {"force-share=on", "force-share"},
           {"nonsense=1", "nonsense"},
           {"file.nonsense=1", "nonsense"},
           {"backing.lazy-refcounts=on", "backing.lazy-refcounts"},
           {"encrypt.key-secret=s", "encrypt.key-secret"},
           {"cache.writeback=on", "cache.writeback"}}) {
    EXPECT_EQ(changed(image, change), cat("error: Cannot change the option '", key, "'"));
  }
  EXPECT_EQ(changed(image, "lazy-refcounts=x"),
            "error: Parameter 'lazy-refcounts' expects 'on' or 'off'");
  // What was good is not done, either.
  EXPECT_EQ(changed(image, "discard=unmap,l2-cache-size=1"),
            "error: l2-cache-size must be 8192 at least, not 1");
  EXPECT_EQ(changed(image, "file=y"), "error: Cannot find device='' nor node-name='y'");
  EXPECT_EQ(changed("driver=raw,file.driver=null-co", "size=512,file.size=1G"),
            "error: Cannot change the option 'size'");
  EXPECT_EQ(changed("driver=raw,file.driver=null-co", "size=512"), "raw size=512 (file: null-co)");
}

TEST(NamedTree, MayReferToNodesThatAreKnown) {
  OpenNodes known;
  known.emplace("f", std::make_shared<DeviceNode>());
  known.at("f")->node_name = "f";
  const auto parse = [&](std::string_view text) {
    return parse_named_tree(*parse_option_list(text), known);
  };
  const Result<DeviceTree> tree = parse("driver=raw,node-name=r,file=f");
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ((*tree)->child("file"), known.at("f").get());
  const auto refused = [&](std::string_view text) { return parse(text).error().message(); };
  EXPECT_EQ(refused("driver=raw,node-name=r,file=g"), "Cannot find device='g' nor node-name='g'");
  EXPECT_EQ(refused("driver=null-co,node-name=f"), "Duplicate nodes with node-name='f'");
  EXPECT_EQ(refused("driver=null-co"), "'node-name' must be specified for the root node");
  EXPECT_EQ(refused("node-name=x"), "Parameter 'driver' is missing");
}

TEST(Drivers, EachHasHelpForAllOfItsOptions) {
  for (const Driver* driver : all_drivers()) {
    EXPECT_FALSE(driver->summary.empty()) << driver->name;
    EXPECT_NE(driver->make, nullptr) << driver->name;
    EXPECT_EQ(*find_driver(driver->name), driver);
    const std::string text = describe_driver(*driver);
    for (const OptionSpec& option : driver->options) {
      EXPECT_FALSE(option.help.empty()) << driver->name << " " << option.name;
      EXPECT_TRUE(option.only.empty() || !option.why.empty()) << option.name;
      EXPECT_NE(text.find(option.name), std::string::npos);
      for (const OptionSpec& common : common_options()) EXPECT_NE(option.name, common.name);
    }
    EXPECT_NE(describe_drivers().find(driver->name), std::string::npos);
  }
}

}  // namespace
}  // namespace byre
