// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics_server.h"

#include <dlfcn.h>
#include <microhttpd.h>

#include <bit>
#include <cerrno>
#include <string_view>

#include "coro/scope.h"

namespace byre {

namespace {

constexpr std::string_view kPath = "/metrics";
constexpr std::string_view kElsewhere = "the metrics are at /metrics\n";

/// libmicrohttpd, loaded when somebody wants metrics.  Linked, it and the TLS library below it
/// would take a third of the time in which a short command (info of a small image) starts and ends.
struct HttpLibrary {
  decltype(&MHD_start_daemon) start_daemon = nullptr;
  decltype(&MHD_stop_daemon) stop_daemon = nullptr;
  decltype(&MHD_get_daemon_info) get_daemon_info = nullptr;
  decltype(&MHD_add_connection) add_connection = nullptr;
  decltype(&MHD_run) run = nullptr;
  decltype(&MHD_create_response_from_buffer) create_response_from_buffer = nullptr;
  decltype(&MHD_add_response_header) add_response_header = nullptr;
  decltype(&MHD_queue_response) queue_response = nullptr;
  decltype(&MHD_destroy_response) destroy_response = nullptr;

  Result<void> load() {
    if (destroy_response) return {};
    void* const library = dlopen(BYRE_MICROHTTPD, RTLD_NOW | RTLD_LOCAL);
    if (!library) return missing();
    bool found = true;
    const auto find = [&]<class Function>(Function& function, const char* name) {
      function = std::bit_cast<Function>(dlsym(library, name));
      found = found && function;
    };
    find(start_daemon, "MHD_start_daemon");
    find(stop_daemon, "MHD_stop_daemon");
    find(get_daemon_info, "MHD_get_daemon_info");
    find(add_connection, "MHD_add_connection");
    find(run, "MHD_run");
    find(create_response_from_buffer, "MHD_create_response_from_buffer");
    find(add_response_header, "MHD_add_response_header");
    find(queue_response, "MHD_queue_response");
    find(destroy_response, "MHD_destroy_response");
    return found ? Result<void>() : missing();
  }

 private:
  static Error missing() {
    const char* const why = dlerror();
    return Error(Errc::unsupported,
                 cat("metrics need the library " BYRE_MICROHTTPD " (Debian: libmicrohttpd12): ",
                     why ? why : "it lacks a function"));
  }
};

HttpLibrary& http() {
  static HttpLibrary library;
  return library;
}

MHD_Result answer(MHD_Connection* client, unsigned code, std::string_view text, const char* type) {
  MHD_Response* const response = http().create_response_from_buffer(
      text.size(), const_cast<char*>(text.data()), MHD_RESPMEM_MUST_COPY);
  if (!response) return MHD_NO;
  http().add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
  if (code == MHD_HTTP_METHOD_NOT_ALLOWED) {
    http().add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
  }
  const MHD_Result queued = http().queue_response(client, code, response);
  http().destroy_response(response);
  return queued;
}

/// Called by the library when a request's head has arrived, and for each part of a body.
MHD_Result handle(void* page, MHD_Connection* client, const char* path, const char* method,
                  const char*, const char*, size_t* body, void**) {
  const std::string_view verb = method;
  if (verb != "GET" && verb != "HEAD") {
    *body = 0;
    return answer(client, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n", "text/plain");
  }
  if (path != kPath) return answer(client, MHD_HTTP_NOT_FOUND, kElsewhere, "text/plain");
  const std::string text = (*static_cast<std::function<std::string()>*>(page))();
  return answer(client, MHD_HTTP_OK, text, "text/plain; version=0.0.4; charset=utf-8");
}

}  // namespace

struct MetricsServer::Http {
  ~Http() {
    if (daemon) http().stop_daemon(daemon);
  }
  MHD_Daemon* daemon = nullptr;
  int epoll = -1;
};

Result<std::unique_ptr<MetricsServer>> MetricsServer::make(Reactor& reactor, Listener listener,
                                                           std::function<std::string()> page) {
  if (Result<void> loaded = http().load(); !loaded) return std::move(loaded).error();
  std::unique_ptr<MetricsServer> server(
      new MetricsServer(reactor, std::move(listener), std::move(page)));
  MHD_Daemon* const daemon = http().start_daemon(
      MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET, 0, nullptr, nullptr, &handle, &server->page_,
      MHD_OPTION_CONNECTION_LIMIT, kClientsMax, MHD_OPTION_CONNECTION_TIMEOUT, kClientSeconds,
      MHD_OPTION_CONNECTION_MEMORY_LIMIT, kClientMemory, MHD_OPTION_END);
  if (!daemon) return errno_error(errno, "start the HTTP server of the metrics");
  server->http_->daemon = daemon;
  server->http_->epoll = http().get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
  return server;
}

MetricsServer::MetricsServer(Reactor& reactor, Listener listener, std::function<std::string()> page)
    : reactor_(reactor),
      listener_(std::move(listener)),
      page_(std::move(page)),
      http_(std::make_unique<Http>()) {}

MetricsServer::~MetricsServer() = default;

Task<void> MetricsServer::run() {
  Scope scope(reactor_.ready());
  scope.spawn(let_in());
  scope.spawn(serve());
  scope.spawn(end_silent_clients());
  co_await scope.join();
}

void MetricsServer::stop() {
  stopped_ = true;
  listener_.cancel();
  reactor_.cancel(poll_);
  reactor_.cancel(timer_);
}

/// The library owns a client from here on; it refuses, and closes, those that are too many.
Task<void> MetricsServer::let_in() {
  while (!stopped_) {
    Result<Socket> client = co_await listener_.accept().result();
    if (!client) {
      if (stopped_) co_return;
      co_await reactor_.sleep(100 * kMillisecond);  // Too many open files, perhaps.
      continue;
    }
    http().add_connection(http_->daemon, client->release(), nullptr, 0);
    http().run(http_->daemon);
  }
}

Task<void> MetricsServer::serve() {
  while (!stopped_) {
    poll_ = Op{.kind = Op::Kind::poll, .fd = http_->epoll};
    const int64_t found = co_await reactor_.perform(poll_);
    if (stopped_) co_return;
    if (found < 0 && found != -EINTR) {
      co_await fail(errno_error(static_cast<int>(-found), "wait for clients of the metrics"));
    }
    http().run(http_->daemon);
  }
}

/// The library looks at its clients' clocks only when it is told to.
Task<void> MetricsServer::end_silent_clients() {
  while (!stopped_) {
    timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + kSecond};
    co_await reactor_.perform(timer_);
    if (!stopped_) http().run(http_->daemon);
  }
}

std::string MetricsServer::address() const {
  return cat("http://", socket() ? "localhost" : listener_.name(), kPath);
}

std::optional<std::string> MetricsServer::socket() const {
  if (listener_.port() != 0) return std::nullopt;
  return listener_.name();
}

}  // namespace byre
