// SPDX-License-Identifier: Apache-2.0
#include "nbd/nbd_wire.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace byre::nbd {
namespace {

Bytes payload_of(const Text& message, size_t header) { return Bytes(message).subspan(header); }
Bytes option_payload(const Text& message) { return payload_of(message, sizeof(OptionWire)); }
Bytes reply_payload(const Text& message) { return payload_of(message, sizeof(OptionReplyWire)); }

std::string hex_of(Bytes bytes) {
  std::string out;
  for (const std::byte byte : bytes) out += fmt::format("{:02x}", static_cast<unsigned>(byte));
  return out;
}

// The bytes that the specification gives, written out by hand.
TEST(NbdWire, MessagesLieAsTheSpecificationSays) {
  Text greeting;
  append_greeting(greeting, kHandshakeFixedNewstyle | kHandshakeNoZeroes);
  EXPECT_EQ(hex_of(greeting), "4e42444d4147494349484156454f50540003");

  Text go;
  append_info_request(go, Option::go, "ab", std::array{Info::block_size});
  EXPECT_EQ(hex_of(go),
            "49484156454f5054000000070000000a0000000261620001"
            "0003");

  Text reply;
  append_info(reply, Option::go, ExportInfo{.size = 0x100000, .flags = 0x0d});
  EXPECT_EQ(hex_of(reply),
            "0003e889045565a900000007000000030000000c"
            "00000000000000100000000d");

  EXPECT_EQ(hex_of(bytes_of(make_request({.flags = kFua,
                                          .command = Command::write,
                                          .cookie = 0x0102030405060708,
                                          .offset = 0x1000,
                                          .length = 0x200}))),
            "256095130001000101020304050607080000000000001000"
            "00000200");
  EXPECT_EQ(hex_of(bytes_of(make_simple_reply(7, Status::enospc))),
            "674466980000001c0000000000000007");
  EXPECT_EQ(hex_of(bytes_of(make_data_chunk(7, 0x1000, 0x200, true))),
            "668e33ef0001000100000000000000070000020800000000"
            "00001000");
  EXPECT_EQ(hex_of(bytes_of(make_hole_chunk(7, 0x1000, 0x200, false))),
            "668e33ef0000000200000000000000070000000c00000000"
            "0000100000000200");
  EXPECT_EQ(hex_of(bytes_of(make_error_chunk(7, Status::eio, 3))),
            "668e33ef0001800100000000000000070000000900000005"
            "0003");
  EXPECT_EQ(hex_of(bytes_of(make_status_chunk(7, 1, 2, true))),
            "668e33ef0001000500000000000000070000001400000001");
}

TEST(NbdWire, OptionsComeBackAsTheyWereSent) {
  Text out;
  append_info_request(out, Option::info, "disk", std::array{Info::name, Info::block_size});
  const auto header = parse_option_header(out);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->option, Option::info);
  EXPECT_EQ(header->length, out.size() - sizeof(OptionWire));
  const auto info = parse_info_request(option_payload(out));
  ASSERT_TRUE(info);
  EXPECT_EQ(info->name, "disk");
  EXPECT_TRUE(info->wants(Info::name));
  EXPECT_TRUE(info->wants(Info::block_size));
  EXPECT_FALSE(info->wants(Info::description));

  out.clear();
  const std::string_view queries[] = {"base:allocation", "", "qemu:"};
  append_meta_request(out, Option::set_meta_context, "", queries);
  const auto meta = parse_meta_request(option_payload(out));
  ASSERT_TRUE(meta);
  EXPECT_EQ(meta->name, "");
  ASSERT_EQ(meta->queries.size(), 3u);
  EXPECT_EQ(meta->queries[2], "qemu:");
}

TEST(NbdWire, AnOptionCutAnywhereIsRefused) {
  Text info;
  append_info_request(info, Option::go, "disk", std::array{Info::name});
  for (size_t size = 0; size < option_payload(info).size(); ++size)
    EXPECT_FALSE(parse_info_request(option_payload(info).first(size))) << size;
  Text longer(option_payload(info).begin(), option_payload(info).end());
  longer.push_back(std::byte{0});
  EXPECT_FALSE(parse_info_request(longer));

  Text meta;
  append_meta_request(meta, Option::set_meta_context, "disk",
                      std::array{std::string_view("base:")});
  for (size_t size = 0; size < option_payload(meta).size(); ++size)
    EXPECT_FALSE(parse_meta_request(option_payload(meta).first(size))) << size;
  longer.assign(option_payload(meta).begin(), option_payload(meta).end());
  longer.push_back(std::byte{0});
  EXPECT_FALSE(parse_meta_request(longer));
}

TEST(NbdWire, ACountThatTheMessageCannotHoldReservesNothing) {
  Text out(8);
  store_be<uint32_t>(out, 0, 0);
  store_be<uint32_t>(out, 4, 0xffffffff);
  EXPECT_FALSE(parse_meta_request(out));
}

TEST(NbdWire, StringsBeyondTheLimitAreRefused) {
  Text out;
  append_info_request(out, Option::go, std::string(kStringMax, 'x'), {});
  EXPECT_TRUE(parse_info_request(option_payload(out)));
  out.clear();
  append_info_request(out, Option::go, std::string(kStringMax + 1, 'x'), {});
  EXPECT_FALSE(parse_info_request(option_payload(out)));
}

TEST(NbdWire, UnknownClientFlagsAreRefused) {
  for (int bit = 0; bit < 32; ++bit) {
    Text out;
    append_client_flags(out, 1u << bit);
    EXPECT_EQ(parse_client_flags(out).has_value(), bit < 2) << bit;
  }
}

TEST(NbdWire, OptionRepliesComeBackAsTheyWereSent) {
  Text out;
  append_server_reply(out, "disk", "the disk");
  const auto header = parse_option_reply_header(out);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->option, Option::list);
  EXPECT_EQ(header->type, OptionReply::server);
  const auto server = parse_server_reply(reply_payload(out));
  ASSERT_TRUE(server);
  EXPECT_EQ(server->name, "disk");
  EXPECT_EQ(server->description, "the disk");

  out.clear();
  append_meta_context(out, Option::set_meta_context, {.id = 2, .name = "base:allocation"});
  const auto context = parse_meta_context_reply(reply_payload(out));
  ASSERT_TRUE(context);
  EXPECT_EQ(context->id, 2u);
  EXPECT_EQ(context->name, "base:allocation");

  out.clear();
  append_info(out, Option::go, BlockSizeInfo{512, 65536, kPayloadMax});
  const auto sizes = parse_info_reply(reply_payload(out));
  ASSERT_TRUE(sizes);
  EXPECT_EQ(std::get<BlockSizeInfo>(*sizes).preferred, 65536u);

  out.clear();
  append_export(out, {.size = 5, .flags = kHasFlags}, true);
  EXPECT_EQ(out.size(), sizeof(ExportWire) + kExportZeroes);
  const auto info = parse_export(Bytes(out).first(sizeof(ExportWire)));
  ASSERT_TRUE(info);
  EXPECT_EQ(info->size, 5u);
}

TEST(NbdWire, BlockSizesThatMakeNoSenseAreRefused) {
  const auto accepted = [](uint32_t minimum, uint32_t preferred, uint32_t maximum) {
    Text out;
    append_info(out, Option::go, BlockSizeInfo{minimum, preferred, maximum});
    return parse_info_reply(reply_payload(out)).has_value();
  };
  EXPECT_TRUE(accepted(1, 4096, UINT32_MAX));
  EXPECT_TRUE(accepted(512, 512, 3 * 512));
  EXPECT_FALSE(accepted(0, 4096, UINT32_MAX));
  EXPECT_FALSE(accepted(3, 4096, UINT32_MAX));
  EXPECT_FALSE(accepted(131072, 131072, UINT32_MAX));
  EXPECT_FALSE(accepted(4096, 512, UINT32_MAX));
  EXPECT_FALSE(accepted(512, 3000, UINT32_MAX));
  EXPECT_FALSE(accepted(512, 512, 513));
  EXPECT_FALSE(accepted(512, 512, 0));
}

TEST(NbdWire, AnOldstyleServerIsNamed) {
  Text out;
  append_greeting(out, 0);
  store_be<uint64_t>(out, 8, kOldstyleMagic);
  const auto flags = parse_greeting(out);
  ASSERT_FALSE(flags);
  EXPECT_EQ(flags.error().code(), Errc::unsupported);
}

TEST(NbdWire, ChunksComeBackAsTheyWereSent) {
  Text out;
  const auto put = [&](const auto& wire) {
    const Bytes bytes = bytes_of(wire);
    out.insert(out.end(), bytes.begin(), bytes.end());
  };
  const auto parse = [&]() -> Result<Chunk> {
    const auto header = parse_reply_header(out);
    if (!header) return header.error().copy();
    return parse_chunk(std::get<ChunkHeader>(*header), payload_of(out, sizeof(ChunkWire)));
  };

  put(make_data_chunk(1, 512, 3, false));
  const auto text = bytes_of(std::string_view("abc"));
  out.insert(out.end(), text.begin(), text.end());
  auto chunk = parse();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(std::get<DataChunk>(*chunk).offset, 512u);
  EXPECT_EQ(text_of(std::get<DataChunk>(*chunk).data), "abc");

  out.clear();
  put(make_hole_chunk(1, 512, 4096, true));
  chunk = parse();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(std::get<HoleChunk>(*chunk).length, 4096u);

  out.clear();
  put(make_error_offset_chunk(1, Status::eio, 3));
  out.insert(out.end(), text.begin(), text.end());
  put(be64(4096));
  chunk = parse();
  ASSERT_TRUE(chunk);
  EXPECT_EQ(std::get<ErrorChunk>(*chunk).error, 5u);
  EXPECT_EQ(std::get<ErrorChunk>(*chunk).message, "abc");
  EXPECT_EQ(std::get<ErrorChunk>(*chunk).offset, 4096u);

  out.clear();
  put(make_status_chunk(1, 9, 2, true));
  put(DescriptorWire{.length = 4096, .flags = kStateHole});
  put(DescriptorWire{.length = 512, .flags = 0});
  chunk = parse();
  ASSERT_TRUE(chunk);
  const auto& status = std::get<StatusChunk>(*chunk);
  EXPECT_EQ(status.context, 9u);
  ASSERT_EQ(status.descriptors.size(), 2u);
  EXPECT_EQ(status.descriptors[1].length, 512u);

  out.clear();
  put(make_done(1));
  chunk = parse();
  ASSERT_TRUE(chunk);
  EXPECT_TRUE(std::holds_alternative<NoneChunk>(*chunk));
}

TEST(NbdWire, ChunksThatTheSpecificationForbidsAreRefused) {
  const auto accepted = [](ChunkType type, uint16_t flags, std::string_view payload) {
    const ChunkHeader header{
        .flags = flags, .type = type, .cookie = 1, .length = static_cast<uint32_t>(payload.size())};
    return parse_chunk(header, bytes_of(payload)).has_value();
  };
  using namespace std::string_view_literals;
  EXPECT_FALSE(accepted(ChunkType::none, 0, ""));  // Never last.
  EXPECT_FALSE(accepted(ChunkType::none, kChunkDone, "x"));
  EXPECT_FALSE(accepted(ChunkType::offset_data, 0, "\0\0\0\0\0\0\0\0"sv));
  EXPECT_FALSE(accepted(ChunkType::offset_hole, 0, "\0\0\0\0\0\0\0\0\0\0\0\0"sv));
  EXPECT_FALSE(accepted(ChunkType::block_status, 0, "\0\0\0\1"sv));
  EXPECT_FALSE(accepted(ChunkType::block_status, 0, "\0\0\0\1\0\0\0\0\0\0\0\0"sv));
  EXPECT_FALSE(accepted(ChunkType::error, 0, "\0\0\0\0\0\0"sv));  // No error.
  EXPECT_FALSE(accepted(ChunkType::error, 0, "\0\0\0\5\0\1"sv));  // The message is missing.
  EXPECT_FALSE(accepted(ChunkType::error_offset, 0, "\0\0\0\5\0\0"sv));
  EXPECT_FALSE(accepted(static_cast<ChunkType>(3), 0, ""));
  EXPECT_TRUE(accepted(static_cast<ChunkType>(0x8abc), 0, "\0\0\0\5\0\0 and more"sv));
}

TEST(NbdWire, ErrorsKeepTheirMeaningOverTheWire) {
  const std::pair<int, Status> pairs[] = {
      {EPERM, Status::eperm},     {EACCES, Status::eperm},
      {EROFS, Status::eperm},     {EIO, Status::eio},
      {ENOMEM, Status::enomem},   {EINVAL, Status::einval},
      {ENOSPC, Status::enospc},   {EDQUOT, Status::enospc},
      {EFBIG, Status::enospc},    {EOVERFLOW, Status::eoverflow},
      {ENOTSUP, Status::enotsup}, {ESHUTDOWN, Status::eshutdown},
      {ETIMEDOUT, Status::eio},   {EBADMSG, Status::eio},
      {ECANCELED, Status::eio},
  };
  for (const auto& [number, status] : pairs) {
    EXPECT_EQ(status_of(errno_error(number, "read")), status) << number;
    EXPECT_EQ(status_of(error_of(static_cast<uint32_t>(status), "")), status) << number;
  }
  EXPECT_EQ(status_of(corrupt("L2 entry")), Status::eio);
  EXPECT_EQ(status_of(Error(Errc::read_only, "no")), Status::eperm);
  EXPECT_EQ(error_of(12345, "odd").sys_errno(), EINVAL);
}

// ---- check() ----------------------------------------------------------------------------------

constexpr uint64_t kSize = 1 << 20;

Terms writable() {
  return {.size = kSize,
          .flags = kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes | kSendDf |
                   kSendFastZero,
          .structured = true,
          .contexts = true};
}

// Every command, known or not, with every set of the flags known and one that is not.
TEST(NbdCheck, EachCommandTakesItsOwnFlags) {
  const uint16_t kAnyFlag[] = {kFua, kNoHole, kDf, kRequestOne, kFastZero, 1 << 5};
  for (uint16_t command = 0; command < 12; ++command) {
    for (uint32_t set = 0; set < 64; ++set) {
      uint16_t flags = 0;
      for (int i = 0; i < 6; ++i) {
        if ((set >> i & 1) != 0) flags |= kAnyFlag[i];
      }
      uint16_t allowed = kFua;
      if (command == 0) allowed |= kDf;
      if (command == 6) allowed |= kNoHole | kFastZero;
      if (command == 7) allowed |= kRequestOne;
      const bool sound = command == 2 || (command < 8 && (flags & ~allowed) == 0);
      const uint32_t length = command == 3 ? 0 : 512;
      const Status status = check(
          {.flags = flags, .command = static_cast<Command>(command), .length = length}, writable());
      EXPECT_EQ(status, sound ? Status::ok : Status::einval) << command << " " << flags;
    }
  }
}

TEST(NbdCheck, FlagsThatWereNotOfferedAreRefused) {
  Terms terms = writable();
  terms.flags = kHasFlags;
  EXPECT_EQ(check({.flags = kFua, .length = 512}, terms), Status::einval);
  EXPECT_EQ(check({.flags = kDf, .length = 512}, terms), Status::einval);
  EXPECT_EQ(check({.flags = kFastZero, .command = Command::write_zeroes, .length = 512}, terms),
            Status::einval);
}

TEST(NbdCheck, NothingPassesTheEnd) {
  const uint64_t offsets[] = {0,     1,         kSize - 512,      kSize - 511,
                              kSize, kSize + 1, UINT64_MAX - 511, UINT64_MAX};
  const uint32_t lengths[] = {1, 512, kSize, kSize + 1, UINT32_MAX};
  const std::pair<Command, Status> commands[] = {
      {Command::read, Status::einval},  {Command::write, Status::enospc},
      {Command::trim, Status::einval},  {Command::write_zeroes, Status::enospc},
      {Command::cache, Status::einval}, {Command::block_status, Status::einval},
  };
  for (const auto& [command, beyond] : commands) {
    for (const uint64_t offset : offsets) {
      for (const uint32_t length : lengths) {
        __extension__ using Wide = unsigned __int128;
        const bool inside = Wide{offset} + length <= kSize;
        EXPECT_EQ(check({.command = command, .offset = offset, .length = length}, writable()),
                  inside ? Status::ok : beyond)
            << static_cast<int>(command) << " " << offset << " " << length;
      }
    }
  }
}

TEST(NbdCheck, AReadOnlyExportTakesNoWrites) {
  Terms terms = writable();
  terms.flags |= kReadOnly;
  for (const Command command : {Command::write, Command::trim, Command::write_zeroes})
    EXPECT_EQ(check({.command = command, .length = 512}, terms), Status::eperm);
  for (const Command command : {Command::read, Command::cache, Command::block_status})
    EXPECT_EQ(check({.command = command, .length = 512}, terms), Status::ok);
  EXPECT_EQ(check({.command = Command::flush}, terms), Status::ok);
}

TEST(NbdCheck, OnlyPayloadsAreBounded) {
  Terms terms = writable();
  terms.size = uint64_t{1} << 40;
  constexpr uint32_t kHuge = 0xfffff000;
  EXPECT_EQ(check({.command = Command::read, .length = kHuge}, terms), Status::einval);
  EXPECT_EQ(check({.flags = kDf, .command = Command::read, .length = kHuge}, terms),
            Status::eoverflow);
  EXPECT_EQ(check({.command = Command::write, .length = kHuge}, terms), Status::einval);
  EXPECT_EQ(check({.command = Command::write, .length = kPayloadMax}, terms), Status::ok);
  for (const Command command :
       {Command::trim, Command::write_zeroes, Command::cache, Command::block_status})
    EXPECT_EQ(check({.command = command, .length = kHuge}, terms), Status::ok);
}

TEST(NbdCheck, AlignmentIsKept) {
  Terms terms = writable();
  terms.alignment = 512;
  EXPECT_EQ(check({.command = Command::read, .offset = 512, .length = 512}, terms), Status::ok);
  EXPECT_EQ(check({.command = Command::read, .offset = 1, .length = 512}, terms), Status::einval);
  EXPECT_EQ(check({.command = Command::write, .offset = 0, .length = 511}, terms), Status::einval);
}

TEST(NbdCheck, BlockStatusNeedsAContextAndALength) {
  const Request request{.command = Command::block_status, .length = 512};
  Terms terms = writable();
  EXPECT_EQ(check(request, terms), Status::ok);
  EXPECT_EQ(check({.command = Command::block_status, .length = 0}, terms), Status::einval);
  terms.contexts = false;
  EXPECT_EQ(check(request, terms), Status::einval);
}

TEST(NbdCheck, LengthZeroIsNoReasonToFail) {
  for (const Command command : {Command::read, Command::write, Command::trim, Command::cache,
                                Command::write_zeroes, Command::flush})
    EXPECT_EQ(check({.command = command}, writable()), Status::ok);
}

TEST(NbdCheck, AFlushHasNoRange) {
  EXPECT_EQ(check({.command = Command::flush, .offset = 512}, writable()), Status::einval);
  EXPECT_EQ(check({.command = Command::flush, .length = 512}, writable()), Status::einval);
}

}  // namespace
}  // namespace byre::nbd
