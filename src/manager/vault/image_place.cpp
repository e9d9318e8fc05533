#include "manager/vault/image_place.hpp"

namespace vtpmd::manager {

namespace {

class FilePlace final : public ImagePlace {
  public:
    FilePlace(BlockIo& io, std::string path, const Log& log)
        : io_(io)
        , path_(std::move(path))
        , log_(log) {}

    [[nodiscard]] const std::string& path() const override { return path_; }

    Task<Result<std::unique_ptr<store::ManagerImage>>> create(store::ManagerImage::CreateOptions options) override {
        auto file = io_.open(path_, OpenMode::create);
        if (!file && file.error().code == Errc::exists) {
            file = io_.open(path_, OpenMode::existing); // what is in it decides
        }
        if (!file) {
            co_return file.error();
        }
        co_return co_await store::ManagerImage::create(std::move(*file), std::move(options), log_);
    }

    Task<Result<std::unique_ptr<store::ManagerImage>>> open() override {
        auto file = io_.open(path_, OpenMode::existing);
        if (!file) {
            co_return file.error();
        }
        // A copy that was made sparsely has holes where nothing is, and the journal counts on its room.
        if (auto room = co_await (*file)->allocate(0, (*file)->size()); !room) {
            log_.warning("{}; saves fail if the disk gets full", room.error().message);
        }
        co_return co_await store::ManagerImage::open(std::move(*file), log_);
    }

    Task<Result<std::unique_ptr<store::ManagerImage>>> look() override {
        auto file = io_.open(path_, OpenMode::look);
        if (!file) {
            co_return file.error();
        }
        co_return co_await store::ManagerImage::look(std::move(*file), log_);
    }

  private:
    BlockIo& io_;
    const std::string path_;
    const Log& log_;
};

} // namespace

std::unique_ptr<ImagePlace> make_file_place(BlockIo& io, std::string path, const Log& log) {
    return std::make_unique<FilePlace>(io, std::move(path), log);
}

} // namespace vtpmd::manager
