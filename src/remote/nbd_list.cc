// SPDX-License-Identifier: Apache-2.0
#include "remote/nbd_list.h"

#include "remote/nbd_negotiation.h"

namespace byre::nbd {

namespace {

/// More is no list for people.
constexpr size_t kExportsMax = 65536;
constexpr size_t kContextsMax = 65536;

class Lister {
 public:
  explicit Lister(Socket& socket) : socket_(socket), intake_(socket), server_(socket, intake_) {}

  Task<std::vector<ListedExport>> run() {
    co_await server_.greet();
    Text out;
    append_option(out, Option::structured_reply);
    co_await server_.ask(out);
    const bool structured = !is_error(co_await server_.final_reply());
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
  Task<std::vector<ListedExport>> names() {
    Text out;
    append_option(out, Option::list);
    co_await server_.ask(out);
    std::vector<ListedExport> exports;
    for (;;) {
      const OptionReply type = co_await server_.next_reply();
      if (type == OptionReply::ack) co_return exports;
      if (is_error(type)) {
        co_return Error(Errc::denied, cat("the server does not list its exports: ",
                                          server_.payload().empty() ? "no reason given"
                                                                    : text_of(server_.payload())));
      }
      if (type != OptionReply::server) continue;
      const ServerReply reply = co_await parse_server_reply(server_.payload());
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
    co_await server_.ask(out);
    for (;;) {
      const OptionReply type = co_await server_.next_reply();
      if (type == OptionReply::ack) co_return;
      if (is_error(type)) {
        one.info.reset();
        co_return;
      }
      if (type != OptionReply::info) continue;
      const InfoReply info = co_await parse_info_reply(server_.payload());
      if (const auto* facts = std::get_if<ExportInfo>(&info)) one.info = *facts;
      if (const auto* sizes = std::get_if<BlockSizeInfo>(&info)) one.block_sizes = *sizes;
      if (const auto* said = std::get_if<DescriptionInfo>(&info))
        one.description = said->description;
    }
  }

  Task<void> read_contexts(ListedExport& one) {
    Text out;
    append_meta_request(out, Option::list_meta_context, one.name, {});
    co_await server_.ask(out);
    for (;;) {
      const OptionReply type = co_await server_.next_reply();
      if (type == OptionReply::ack || is_error(type)) co_return;
      if (type != OptionReply::meta_context) continue;
      const MetaContextReply context = co_await parse_meta_context_reply(server_.payload());
      if (one.contexts.size() == kContextsMax) co_await fail(invalid("NBD: too many contexts"));
      one.contexts.emplace_back(context.name);
    }
  }

  Socket& socket_;
  Intake intake_;
  Negotiation server_;
};

}  // namespace

Task<std::vector<ListedExport>> list_exports(Socket socket) {
  Lister lister(socket);
  co_return co_await lister.run();
}

}  // namespace byre::nbd
