// Where the store lives: how the vault makes and opens its image. The one that counts is a file or block device; tests have
// others.
#pragma once

#include "store/journal.hpp"

#include <memory>
#include <string>

namespace vtpmd::manager {

class ImagePlace {
  public:
    virtual ~ImagePlace() = default;
    /// For messages.
    [[nodiscard]] virtual const std::string& path() const = 0;
    /// Errc::exists if there is anything but a creation cut short.
    virtual Task<Result<std::unique_ptr<store::ManagerImage>>> create(store::ManagerImage::CreateOptions options) = 0;
    /// Errc::not_found if there is nothing.
    virtual Task<Result<std::unique_ptr<store::ManagerImage>>> open() = 0;
    /// ManagerImage::look().
    virtual Task<Result<std::unique_ptr<store::ManagerImage>>> look() = 0;
};

/// A file or block device. `io` and `log` outlive it and the images.
[[nodiscard]] std::unique_ptr<ImagePlace> make_file_place(BlockIo& io, std::string path, const Log& log);

} // namespace vtpmd::manager
