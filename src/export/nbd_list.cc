// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_list.h"

#include "export/nbd_stream.h"

namespace byre::nbd {

namespace {

/// More is no list for people.
constexpr size_t kExportsMax = 65536;
constexpr size_t kContextsMax = 65536;

class Lister {
 public:
  explicit Lister(Socket& socket) : socket_(socket), intake_(socket) {}

  Task<std::vector<ListedExport>> run() {
    co_await greet();
    Text out;
    append_option(out, Option::structured_reply);
    co_await ask(out);
    const bool structured = !is_error(co_await final_reply());
    std::vector<ListedExport> exports = co_await names();
    for (ListedExport& one : exports) {
      co_await examine(one);
      if (structured) co_await read_contexts(one);
    }
    out.clear();
    append_option(out, Option::abort);
    const Result<void> left = co_await socket_.send_all(out).result();  // It may have hung up.
    co_return exports;
  }

 private:
  static Error ended() { return Error(Errc::io, "the server hung up during the handshake"); }

  Task<void> greet() {
    if (!co_await intake_.need(sizeof(GreetingWire))) co_await fail(ended());
    const uint16_t flags = co_await parse_greeting(intake_.have());
    intake_.take(sizeof(GreetingWire));
    if ((flags & kHandshakeFixedNewstyle) == 0) {
      co_await fail(unsupported("the server is too old to list its exports"));
    }
    Text out;
    append_client_flags(out, kClientFixedNewstyle);
    co_await ask(out);
  }
  Task<void> ask(Text text) { co_await socket_.send_all(text); }

  /// One reply to the option that was asked; its payload is in `payload_`.
  Task<OptionReply> next_reply() {
    if (!co_await intake_.need(sizeof(OptionReplyWire))) co_return ended();
    const OptionReplyHeader header = co_await parse_option_reply_header(intake_.have());
    intake_.take(sizeof(OptionReplyWire));
    if (header.length > Intake::kCapacity) {
      co_return invalid("NBD: a reply of ", header.length, " bytes in the handshake");
    }
    if (!co_await intake_.need(header.length)) co_return ended();
    const Bytes payload = intake_.have().first(header.length);
    payload_.assign(payload.begin(), payload.end());
    intake_.take(header.length);
    co_return header.type;
  }
  /// The last one; those before it are nothing we know.
  Task<OptionReply> final_reply() {
    for (;;) {
      const OptionReply type = co_await next_reply();
      if (type == OptionReply::ack || is_error(type)) co_return type;
    }
  }

  Task<std::vector<ListedExport>> names() {
    Text out;
    append_option(out, Option::list);
    co_await ask(out);
    std::vector<ListedExport> exports;
    for (;;) {
      const OptionReply type = co_await next_reply();
      if (type == OptionReply::ack) co_return exports;
      if (is_error(type)) {
        co_return Error(Errc::denied,
                        cat("the server does not list its exports: ",
                            payload_.empty() ? "no reason given" : text_of(payload_)));
      }
      if (type != OptionReply::server) continue;
      const ServerReply reply = co_await parse_server_reply(payload_);
      if (exports.size() == kExportsMax) co_return invalid("NBD: too many exports");
      ListedExport& one = exports.emplace_back();
      one.name = reply.name;
      one.description = reply.description;
    }
  }

  Task<void> examine(ListedExport& one) {
    Text out;
    const Info wanted[] = {Info::description, Info::block_size};
    append_info_request(out, Option::info, one.name, wanted);
    co_await ask(out);
    for (;;) {
      const OptionReply type = co_await next_reply();
      if (type == OptionReply::ack) co_return;
      if (is_error(type)) {
        one.info.reset();
        co_return;
      }
      if (type != OptionReply::info) continue;
      const InfoReply info = co_await parse_info_reply(payload_);
      if (const auto* facts = std::get_if<ExportInfo>(&info)) one.info = *facts;
      if (const auto* sizes = std::get_if<BlockSizeInfo>(&info)) one.block_sizes = *sizes;
      if (const auto* said = std::get_if<DescriptionInfo>(&info))
        one.description = said->description;
    }
  }

  Task<void> read_contexts(ListedExport& one) {
    Text out;
    append_meta_request(out, Option::list_meta_context, one.name, {});
    co_await ask(out);
    for (;;) {
      const OptionReply type = co_await next_reply();
      if (type == OptionReply::ack || is_error(type)) co_return;
      if (type != OptionReply::meta_context) continue;
      const MetaContextReply context = co_await parse_meta_context_reply(payload_);
      if (one.contexts.size() == kContextsMax) co_await fail(invalid("NBD: too many contexts"));
      one.contexts.emplace_back(context.name);
    }
  }

  Socket& socket_;
  Intake intake_;
  std::vector<std::byte> payload_;
};

}  // namespace

Task<std::vector<ListedExport>> list_exports(Socket socket) {
  Lister lister(socket);
  co_return co_await lister.run();
}

}  // namespace byre::nbd
