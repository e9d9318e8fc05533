// The guest's side of a command socket: blocking, one command at a time, the same code for every TPM behind it.
#pragma once

#include "util/bytes.hpp"
#include "util/fd.hpp"

#include <array>
#include <chrono>
#include <filesystem>

namespace bench {

using vtpmd::Bytes;
using vtpmd::ByteView;

/// Tries until somebody listens or the time is up. Throws std::runtime_error.
vtpmd::UniqueFd connect_to(const std::filesystem::path& socket, std::chrono::milliseconds patience);

class Client {
  public:
    /// Throws std::runtime_error.
    Client(const std::filesystem::path& socket, std::chrono::milliseconds patience)
        : Client(connect_to(socket, patience)) {}
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    virtual ~Client() = default;

    /// Sends, waits, and returns the answer: a view until the next call. Throws if the link breaks.
    ByteView exchange(ByteView command);
    /// Like exchange(); throws if the TPM does not say success.
    ByteView must(ByteView command);

  protected:
    explicit Client(vtpmd::UniqueFd fd)
        : fd_(std::move(fd)) {}

  private:
    vtpmd::UniqueFd fd_;
    std::array<std::byte, 4096> answer_{};
};

/// TPM 2.0 commands with the empty password that the benchmark needs beyond those of tpm/commands.hpp.
Bytes nv_define(std::uint32_t index, std::uint16_t size);
Bytes nv_write(std::uint32_t index, ByteView data);
Bytes extend_16();

} // namespace bench
