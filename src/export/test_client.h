// SPDX-License-Identifier: Apache-2.0
/// TestClient: an NBD client that keeps the protocol, or breaks it where a test says so.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "nbd/nbd_stream.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {

/// All that the server said to one request.
struct Answer {
  uint64_t cookie = 0;
  Status status = Status::ok;
  std::string message;
  std::vector<std::byte> data;  ///< Of a read, with its holes filled.
  std::vector<ChunkType> chunks;
  struct Range {
    uint32_t length;
    uint32_t flags;
    bool operator==(const Range&) const = default;
  };
  std::map<uint32_t, std::vector<Range>> extents;  ///< By context.
};

/// How a client wants to be served.
struct Wishes {
  std::string_view name = "disk";
  bool structured = true;
  bool contexts = false;
};

class TestClient {
 public:
  explicit TestClient(Socket socket) : socket_(std::move(socket)), intake_(socket_) {}

  Socket& socket() { return socket_; }
  uint16_t flags() const { return flags_; }
  uint64_t size() const { return size_; }

  /// The whole handshake with GO.
  Task<void> attach(Wishes wishes = Wishes()) {
    co_await greet();
    if (wishes.structured) {
      co_await option(Option::structured_reply);
      if (co_await final_reply() != OptionReply::ack) co_await fail(invalid("structured replies"));
    }
    if (wishes.contexts) {
      Text out;
      const std::string_view queries[] = {"base:allocation", "qemu:allocation-depth"};
      append_meta_request(out, Option::set_meta_context, wishes.name, queries);
      co_await send(out);
      if (co_await final_reply() != OptionReply::ack) co_await fail(invalid("meta contexts"));
    }
    Text out;
    append_info_request(out, Option::go, wishes.name, {});
    co_await send(out);
    if (co_await final_reply() != OptionReply::ack) co_await fail(invalid("GO"));
    structured_ = wishes.structured;
  }
  Task<void> greet() {
    if (!co_await intake_.need(sizeof(GreetingWire))) co_await fail(ended());
    co_await parse_greeting(intake_.have());
    intake_.take(sizeof(GreetingWire));
    Text out;
    append_client_flags(out, kClientFixedNewstyle | kClientNoZeroes);
    co_await send(out);
  }
  Task<void> option(Option option, std::string_view payload = {}) {
    Text out;
    append_option(out, option, bytes_of(payload));
    co_await send(out);
  }
  /// The type of the last reply to one option; what comes before is looked through.
  Task<OptionReply> final_reply() {
    for (;;) {
      if (!co_await intake_.need(sizeof(OptionReplyWire))) co_return ended();
      const OptionReplyHeader header = co_await parse_option_reply_header(intake_.have());
      intake_.take(sizeof(OptionReplyWire));
      if (!co_await intake_.need(header.length)) co_return ended();
      const Bytes payload = intake_.have().first(header.length);
      if (header.type == OptionReply::info) {
        const InfoReply info = co_await parse_info_reply(payload);
        if (const auto* facts = std::get_if<ExportInfo>(&info)) {
          flags_ = facts->flags;
          size_ = facts->size;
        }
      }
      message_ = text_of(payload);
      intake_.take(header.length);
      if (header.type == OptionReply::ack || is_error(header.type)) co_return header.type;
    }
  }
  const std::string& message() const { return message_; }

  Task<void> send(Bytes bytes) { co_await socket_.send_all(bytes); }
  Task<void> ask(Request request, Bytes payload = {}) {
    asked_[request.cookie] = request;
    const RequestWire wire = make_request(request);
    Text out(bytes_of(wire).begin(), bytes_of(wire).end());
    out.insert(out.end(), payload.begin(), payload.end());
    co_await send(out);
  }
  /// The next request to be answered, whole.
  Task<Answer> answer() {
    for (;;) {
      const uint64_t cookie = co_await message_in();
      const auto found = answers_.find(cookie);
      if (found == answers_.end() || !found->second.second) continue;
      Answer answer = std::move(found->second.first);
      answers_.erase(found);
      asked_.erase(cookie);
      co_return answer;
    }
  }
  Task<Answer> call(Request request, Bytes payload = {}) {
    co_await ask(request, payload);
    co_return co_await answer();
  }
  /// Throws away what comes, until the server ends the connection.
  Task<void> drain() {
    for (;;) {
      const Result<bool> more = co_await intake_.need(1).result();
      if (!more || !*more) co_return;
      intake_.take(intake_.have().size());
    }
  }
  /// True when the server ends the connection next.
  Task<bool> at_end() {
    Result<bool> more = co_await intake_.need(1).result();
    co_return !more || !*more;
  }

 private:
  static Error ended() { return Error(Errc::io, "the server hung up"); }

  Task<uint64_t> message_in() {
    if (!co_await intake_.need(sizeof(be32))) co_return ended();
    const size_t size = co_await reply_header_size(intake_.have());
    if (!co_await intake_.need(size)) co_return ended();
    const ReplyHeader header = co_await parse_reply_header(intake_.have());
    intake_.take(size);
    if (const auto* simple = std::get_if<SimpleReply>(&header))
      co_return co_await simple_in(*simple);
    co_return co_await chunk_in(std::get<ChunkHeader>(header));
  }
  Task<uint64_t> simple_in(SimpleReply simple) {
    const auto asked = asked_.find(simple.cookie);
    if (asked == asked_.end()) co_return invalid("an answer to no question");
    const bool read = asked->second.command == Command::read;
    if (read && structured_) co_return invalid("a simple reply to a read");
    auto& [answer, done] = answers_[simple.cookie];
    answer.cookie = simple.cookie;
    answer.status = static_cast<Status>(simple.error);
    done = true;
    if (read && simple.error == 0) {
      answer.data.resize(asked->second.length);
      if (!co_await intake_.read(answer.data)) co_return ended();
    }
    co_return simple.cookie;
  }
  Task<uint64_t> chunk_in(ChunkHeader header) {
    const auto asked = asked_.find(header.cookie);
    if (asked == asked_.end()) co_return invalid("an answer to no question");
    if (!structured_) co_return invalid("a chunk without structured replies");
    const Request request = asked->second;
    std::vector<std::byte> payload(header.length);
    if (!co_await intake_.read(payload)) co_return ended();
    const Chunk chunk = co_await parse_chunk(header, payload);
    auto& [answer, done] = answers_[header.cookie];
    if (done) co_return invalid("a chunk after the last");
    answer.cookie = header.cookie;
    answer.chunks.push_back(header.type);
    const bool content =
        header.type == ChunkType::offset_data || header.type == ChunkType::offset_hole;
    if (content && answer.data.empty()) answer.data.resize(request.length, std::byte{0xee});
    const auto outside = [&](uint64_t offset, uint64_t length) {
      return offset < request.offset ||
             !within(offset - request.offset, length, answer.data.size());
    };
    if (const auto* data = std::get_if<DataChunk>(&chunk)) {
      if (outside(data->offset, data->data.size())) co_return invalid("data not asked for");
      copy(MutableBytes(answer.data).subspan(data->offset - request.offset), data->data);
    } else if (const auto* hole = std::get_if<HoleChunk>(&chunk)) {
      if (outside(hole->offset, hole->length)) co_return invalid("a hole not asked for");
      fill_zero(MutableBytes(answer.data).subspan(hole->offset - request.offset, hole->length));
    } else if (const auto* extents = std::get_if<StatusChunk>(&chunk)) {
      for (const DescriptorWire& wire : extents->descriptors)
        answer.extents[extents->context].push_back({wire.length, wire.flags});
    } else if (const auto* error = std::get_if<ErrorChunk>(&chunk)) {
      answer.status = static_cast<Status>(error->error);
      answer.message = error->message;
    }
    done = header.done();
    co_return header.cookie;
  }

  Socket socket_;
  Intake intake_;
  bool structured_ = false;
  uint16_t flags_ = 0;
  uint64_t size_ = 0;
  std::string message_;
  std::map<uint64_t, Request> asked_;
  std::map<uint64_t, std::pair<Answer, bool>> answers_;
};

}  // namespace byre::nbd
