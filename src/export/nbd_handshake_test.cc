// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_handshake.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "export/test_device.h"
#include "sim/sim_reactor.h"

namespace byre::nbd {
namespace {

/// One reply of the server, taken apart.
struct Reply {
  OptionReply type;
  std::vector<std::byte> payload;
};

std::vector<Reply> replies_in(const Text& out, Option option) {
  std::vector<Reply> replies;
  Bytes rest = out;
  while (!rest.empty()) {
    const auto header = parse_option_reply_header(rest);
    EXPECT_TRUE(header);
    if (!header) break;
    EXPECT_EQ(header->option, option);
    rest = rest.subspan(sizeof(OptionReplyWire));
    EXPECT_LE(header->length, rest.size());
    const Bytes payload = rest.first(header->length);
    replies.push_back({header->type, {payload.begin(), payload.end()}});
    rest = rest.subspan(header->length);
  }
  return replies;
}

class NbdHandshake : public ::testing::Test {
 protected:
  NbdHandshake() {
    EXPECT_TRUE(exports.add(
        {.name = "disk", .description = "a disk", .disk = Entrance::to(disk), .writable = true}));
    EXPECT_TRUE(exports.add({.name = "other", .disk = Entrance::to(disk)}, true));
  }
  using Next = Handshake::Next;

  Next send(Option option, Bytes payload = {}) {
    Text out;
    next = handshake.option(option, payload, out);
    raw = out;
    replies = option == Option::export_name ? std::vector<Reply>{} : replies_in(out, option);
    return next;
  }
  Next send_info(Option option, std::string_view name, std::vector<Info> wanted = {}) {
    Text message;
    append_info_request(message, option, name, wanted);
    return send(option, Bytes(message).subspan(sizeof(OptionWire)));
  }
  Next send_meta(Option option, std::string_view name, std::vector<std::string_view> queries) {
    Text message;
    append_meta_request(message, option, name, queries);
    return send(option, Bytes(message).subspan(sizeof(OptionWire)));
  }
  OptionReply last() const { return replies.back().type; }
  std::vector<std::string> contexts_listed() const {
    std::vector<std::string> names;
    for (const Reply& reply : replies) {
      if (reply.type != OptionReply::meta_context) continue;
      const auto context = parse_meta_context_reply(reply.payload);
      if (context) names.emplace_back(context->name);
    }
    return names;
  }
  template <class T>
  const T* find_info() {
    for (const Reply& reply : replies) {
      if (reply.type != OptionReply::info) continue;
      auto info = parse_info_reply(reply.payload);
      EXPECT_TRUE(info);
      if (info && std::holds_alternative<T>(*info)) {
        found.push_back(std::move(*info));
        return &std::get<T>(found.back());
      }
    }
    return nullptr;
  }

  SimReactor reactor{1};
  TestDevice disk{reactor, 1 << 20};
  Exports exports;
  Handshake handshake{exports, {.clients_max = 1024}};
  Next next = Next::option;
  std::vector<Reply> replies;
  Text raw;
  std::vector<InfoReply> found;
};

TEST_F(NbdHandshake, GoChoosesAnExportAndTellsItsFacts) {
  EXPECT_EQ(send(Option::structured_reply), Next::option);
  EXPECT_EQ(last(), OptionReply::ack);
  EXPECT_EQ(send_info(Option::go, "disk", {Info::name, Info::description, Info::block_size}),
            Next::transmission);
  EXPECT_EQ(last(), OptionReply::ack);
  const auto* info = find_info<ExportInfo>();
  ASSERT_TRUE(info);
  EXPECT_EQ(info->size, 1u << 20);
  EXPECT_EQ(info->flags, kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes |
                             kSendDf | kCanMultiConn | kSendFastZero);
  ASSERT_TRUE(find_info<NameInfo>());
  EXPECT_EQ(find_info<NameInfo>()->name, "disk");
  ASSERT_TRUE(find_info<DescriptionInfo>());
  EXPECT_EQ(find_info<DescriptionInfo>()->description, "a disk");
  const auto* sizes = find_info<BlockSizeInfo>();
  ASSERT_TRUE(sizes);
  EXPECT_EQ(sizes->minimum, 1u);
  EXPECT_EQ(sizes->preferred, 65536u);
  EXPECT_EQ(sizes->maximum, 32u << 20);
  EXPECT_EQ(handshake.chosen().name, "disk");
  EXPECT_TRUE(handshake.terms().structured);
}

TEST_F(NbdHandshake, InfoTellsTheSameAndChoosesNothing) {
  EXPECT_EQ(send_info(Option::info, "disk"), Next::option);
  EXPECT_EQ(last(), OptionReply::ack);
  EXPECT_EQ(replies.size(), 2u);  // Nothing that was not asked for.
  const Text first = raw;
  EXPECT_EQ(send_info(Option::go, "disk"), Next::transmission);
  EXPECT_EQ(raw.size(), first.size());
}

TEST_F(NbdHandshake, AReadOnlyExportOffersNoWrites) {
  EXPECT_EQ(send_info(Option::go, "other"), Next::transmission);
  const auto* info = find_info<ExportInfo>();
  ASSERT_TRUE(info);
  EXPECT_EQ(info->flags, kHasFlags | kReadOnly | kSendFlush | kSendFua | kCanMultiConn);
}

TEST_F(NbdHandshake, AWritableExportOfAReadOnlyDeviceIsReadOnly) {
  disk.can_write = false;
  EXPECT_EQ(send_info(Option::go, "disk"), Next::transmission);
  EXPECT_TRUE(find_info<ExportInfo>()->flags & kReadOnly);
}

TEST_F(NbdHandshake, NoNameMeansTheDefaultExport) {
  EXPECT_EQ(send_info(Option::go, "", {Info::name}), Next::transmission);
  EXPECT_EQ(find_info<NameInfo>()->name, "other");
}

TEST_F(NbdHandshake, AnUnknownExportIsAnErrorThatTheClientCanSee) {
  EXPECT_EQ(send_info(Option::go, "nothing"), Next::option);
  EXPECT_EQ(last(), OptionReply::unknown);
  EXPECT_EQ(replies.size(), 1u);
  EXPECT_EQ(send_meta(Option::list_meta_context, "nothing", {}), Next::option);
  EXPECT_EQ(last(), OptionReply::invalid);  // Structured replies first.
  send(Option::structured_reply);
  send_meta(Option::list_meta_context, "nothing", {});
  EXPECT_EQ(last(), OptionReply::unknown);
}

TEST_F(NbdHandshake, ExportNameAnswersInItsOldWay) {
  handshake.client_flags(kClientFixedNewstyle);
  EXPECT_EQ(send(Option::export_name, bytes_of(std::string_view("disk"))), Next::transmission);
  EXPECT_EQ(raw.size(), sizeof(ExportWire) + kExportZeroes);
  Handshake second(exports, {});
  second.client_flags(kClientFixedNewstyle | kClientNoZeroes);
  Text out;
  EXPECT_EQ(second.option(Option::export_name, bytes_of(std::string_view("disk")), out),
            Next::transmission);
  EXPECT_EQ(out.size(), sizeof(ExportWire));
  out.clear();
  EXPECT_EQ(second.option(Option::export_name, bytes_of(std::string_view("no")), out), Next::end);
  EXPECT_TRUE(out.empty());
}

TEST_F(NbdHandshake, ListNamesTheExportsIfPolicyLetsIt) {
  EXPECT_EQ(send(Option::list), Next::option);
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_EQ(parse_server_reply(replies[0].payload)->name, "disk");
  EXPECT_EQ(parse_server_reply(replies[0].payload)->description, "a disk");
  EXPECT_EQ(last(), OptionReply::ack);
  EXPECT_EQ(send(Option::list, bytes_of(std::string_view("x"))), Next::option);
  EXPECT_EQ(last(), OptionReply::invalid);

  Handshake silent(exports, {.allow_list = false});
  Text out;
  EXPECT_EQ(silent.option(Option::list, {}, out), Next::option);
  EXPECT_EQ(replies_in(out, Option::list)[0].type, OptionReply::policy);
}

TEST_F(NbdHandshake, WhatIsNotSpokenIsRefusedAndTheNextOptionHeard) {
  for (const Option option : {Option::starttls, Option::extended_headers, Option::peek_export,
                              static_cast<Option>(999)}) {
    EXPECT_EQ(send(option), Next::option);
    EXPECT_EQ(last(), OptionReply::unsupported);
  }
  EXPECT_EQ(send(Option::starttls, bytes_of(std::string_view("x"))), Next::option);
  EXPECT_EQ(last(), OptionReply::invalid);
  EXPECT_EQ(send(Option::abort), Next::end);
  EXPECT_EQ(last(), OptionReply::ack);
}

TEST_F(NbdHandshake, BrokenOptionsAreInvalidAndTheNextOptionHeard) {
  for (const Option option : {Option::info, Option::go}) {
    EXPECT_EQ(send(option, bytes_of(std::string_view("abc"))), Next::option);
    EXPECT_EQ(last(), OptionReply::invalid);
  }
  send(Option::structured_reply);
  for (const Option option : {Option::list_meta_context, Option::set_meta_context}) {
    EXPECT_EQ(send(option, bytes_of(std::string_view("abc"))), Next::option);
    EXPECT_EQ(last(), OptionReply::invalid);
  }
  EXPECT_EQ(send(Option::structured_reply, bytes_of(std::string_view("x"))), Next::option);
  EXPECT_EQ(last(), OptionReply::invalid);
}

TEST_F(NbdHandshake, ContextsAreListedByNameAndByNamespace) {
  send(Option::structured_reply);
  const std::pair<std::vector<std::string_view>, std::vector<std::string>> cases[] = {
      {{}, {"base:allocation", "qemu:allocation-depth"}},
      {{"base:"}, {"base:allocation"}},
      {{"qemu:"}, {"qemu:allocation-depth"}},
      {{"base:allocation", "qemu:allocation-depth"}, {"base:allocation", "qemu:allocation-depth"}},
      {{"base:other", "x-foo:bar", ""}, {}},
      {{"base:allocation", "base:"}, {"base:allocation"}},
  };
  for (const auto& [queries, names] : cases) {
    send_meta(Option::list_meta_context, "disk", queries);
    EXPECT_EQ(last(), OptionReply::ack);
    EXPECT_EQ(contexts_listed(), names);
  }
}

TEST_F(NbdHandshake, ContextsAreSetByTheirFullNameOnly) {
  send(Option::structured_reply);
  send_meta(Option::set_meta_context, "disk", {"base:", "qemu:"});
  EXPECT_TRUE(contexts_listed().empty());
  send_meta(Option::set_meta_context, "disk", {});
  EXPECT_TRUE(contexts_listed().empty());
  send_meta(Option::set_meta_context, "disk", {"qemu:allocation-depth"});
  EXPECT_EQ(contexts_listed(), std::vector<std::string>{"qemu:allocation-depth"});
  send_info(Option::go, "disk");
  EXPECT_FALSE(handshake.contexts().allocation);
  EXPECT_TRUE(handshake.contexts().depth);
  EXPECT_TRUE(handshake.terms().contexts);
}

TEST_F(NbdHandshake, ContextsOfAnotherExportAreDropped) {
  send(Option::structured_reply);
  send_meta(Option::set_meta_context, "disk", {"base:allocation"});
  send_info(Option::go, "other");
  EXPECT_FALSE(handshake.terms().contexts);
}

TEST_F(NbdHandshake, ANameAndTheDefaultAreTheSameExport) {
  send(Option::structured_reply);
  send_meta(Option::set_meta_context, "", {"base:allocation"});
  send_info(Option::go, "other");
  EXPECT_TRUE(handshake.terms().contexts);
}

TEST_F(NbdHandshake, AFailedSelectionDropsTheOneBefore) {
  send(Option::structured_reply);
  send_meta(Option::set_meta_context, "disk", {"base:allocation"});
  send_meta(Option::set_meta_context, "nothing", {"base:allocation"});
  EXPECT_EQ(last(), OptionReply::unknown);
  send_info(Option::go, "disk");
  EXPECT_FALSE(handshake.terms().contexts);
}

// Each bit of what is announced, for each way an export can be served; and the requests that it
// stands for are taken or refused accordingly.
TEST_F(NbdHandshake, NothingIsAnnouncedThatWouldBeRefused) {
  for (const bool device_writes : {false, true})
    for (const bool export_writes : {false, true})
      for (const bool structured : {false, true})
        for (const uint32_t clients : {1u, 2u, 7u, 8u, 1024u})
          for (const uint32_t alignment : {1u, 512u, 4096u}) {
            SCOPED_TRACE(
                cat(device_writes, export_writes, structured, " ", clients, " ", alignment));
            disk.can_write = device_writes;
            disk.align = alignment;
            const Export target{.name = "x", .disk = Entrance::to(disk), .writable = export_writes};
            const Terms terms =
                terms_of(target, {.structured = structured, .clients_max = clients});
            const bool writes = device_writes && export_writes;
            const auto announced = [&](uint16_t flag) { return (terms.flags & flag) != 0; };
            EXPECT_TRUE(announced(kHasFlags));
            EXPECT_TRUE(announced(kSendFlush));
            EXPECT_TRUE(announced(kSendFua));
            EXPECT_EQ(announced(kReadOnly), !writes);
            EXPECT_EQ(announced(kSendTrim), writes);
            EXPECT_EQ(announced(kSendWriteZeroes), writes);
            EXPECT_EQ(announced(kSendFastZero), writes);
            EXPECT_EQ(announced(kSendDf), structured);
            EXPECT_EQ(announced(kCanMultiConn), clients >= 8);
            const uint16_t known = kHasFlags | kReadOnly | kSendFlush | kSendFua | kSendTrim |
                                   kSendWriteZeroes | kSendDf | kCanMultiConn | kSendFastZero;
            EXPECT_EQ(terms.flags & ~known, 0);  // No cache, no resize: there is neither.

            const auto answer = [&](Command command, uint16_t flags = 0) {
              const uint32_t length = command == Command::flush ? 0 : 4096;
              return check({.flags = flags, .command = command, .length = length}, terms);
            };
            const Status change = writes ? Status::ok : Status::eperm;
            EXPECT_EQ(answer(Command::read), Status::ok);
            EXPECT_EQ(answer(Command::read, kDf), structured ? Status::ok : Status::einval);
            EXPECT_EQ(answer(Command::write, kFua), change);
            EXPECT_EQ(answer(Command::trim, kFua), change);
            EXPECT_EQ(answer(Command::write_zeroes, kFua | kNoHole), change);
            EXPECT_EQ(answer(Command::write_zeroes, kFastZero), writes ? change : Status::einval);
            EXPECT_EQ(answer(Command::flush), Status::ok);

            // INFO, GO and EXPORT_NAME say the same.
            Exports one;
            ASSERT_TRUE(one.add(target));
            for (const Option option : {Option::info, Option::go, Option::export_name}) {
              Handshake told(one, {.clients_max = clients});
              told.client_flags(kClientFixedNewstyle | kClientNoZeroes);
              Text out;
              if (structured) told.option(Option::structured_reply, {}, out);
              out.clear();
              Text message;
              append_info_request(message, option, "x", {});
              const Bytes payload = option == Option::export_name
                                        ? bytes_of(std::string_view("x"))
                                        : Bytes(message).subspan(sizeof(OptionWire));
              told.option(option, payload, out);
              uint16_t flags = 0;
              if (option == Option::export_name) {
                const auto answered = parse_export(out);
                ASSERT_TRUE(answered);
                flags = answered->flags;
              } else {
                replies = replies_in(out, option);
                found.clear();
                const auto* info = find_info<ExportInfo>();
                ASSERT_TRUE(info);
                flags = info->flags;
              }
              EXPECT_EQ(flags, terms.flags) << static_cast<int>(option);
            }
          }
}

TEST_F(NbdHandshake, TheDepthOfAllocationIsOfferedOnlyWhereAsked) {
  Exports plain;
  ASSERT_TRUE(plain.add({.name = "disk", .disk = Entrance::to(disk), .depth = false}, true));
  Handshake without(plain, {});
  Text out;
  without.option(Option::structured_reply, {}, out);
  for (const Option option : {Option::list_meta_context, Option::set_meta_context}) {
    for (const std::vector<std::string_view>& queries :
         {std::vector<std::string_view>{},
          {"qemu:"},
          {"qemu:allocation-depth", "base:allocation"}}) {
      Text message;
      append_meta_request(message, option, "disk", queries);
      out.clear();
      without.option(option, Bytes(message).subspan(sizeof(OptionWire)), out);
      replies = replies_in(out, option);
      EXPECT_EQ(last(), OptionReply::ack);
      for (const std::string& name : contexts_listed()) EXPECT_EQ(name, "base:allocation");
    }
  }
}

TEST_F(NbdHandshake, BlockSizesKeepTheSpecificationsBounds) {
  for (const uint32_t alignment : {1u, 512u, 4096u, 65536u}) {
    for (const uint32_t preferred : {0u, 1u, 513u, 4096u, 65536u, 3u << 20, 1u << 31, UINT32_MAX}) {
      disk.align = alignment;
      disk.preferred = preferred;
      send_info(Option::info, "disk", {Info::block_size});
      EXPECT_TRUE(find_info<BlockSizeInfo>()) << alignment << " " << preferred;
    }
  }
  disk.align = 512;
  send_info(Option::info, "disk");
  EXPECT_TRUE(find_info<BlockSizeInfo>());  // Unasked for: it is not what clients assume.
}

TEST_F(NbdHandshake, ATailThatNoRequestCanReachIsNotOffered) {
  TestDevice odd(reactor, 4096 + 100);
  odd.align = 512;
  EXPECT_EQ(terms_of({.name = "odd", .disk = Entrance::to(odd)}, {}).size, 4096u);
}

TEST_F(NbdHandshake, NamesAreUniqueAndShort) {
  EXPECT_FALSE(exports.add({.name = "disk", .disk = Entrance::to(disk)}));
  EXPECT_FALSE(exports.add({.name = std::string(4097, 'x'), .disk = Entrance::to(disk)}));
  EXPECT_FALSE(exports.add({.name = std::string("a\0b", 3), .disk = Entrance::to(disk)}));
  EXPECT_FALSE(
      exports.add({.name = "third", .disk = Entrance::to(disk)}, true));  // There is a default.
  EXPECT_EQ(exports.find("third"), nullptr);
}

}  // namespace
}  // namespace byre::nbd
