#include "files.hpp"

#include "util/uninterrupted.hpp"

#include <cerrno>
#include <utility>

namespace vtpmd::sim {

namespace {

Task<bool> a_turn() {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return true;
}

class OpenFile final : public BlockFile {
  public:
    OpenFile(std::string path, Files& files, std::shared_ptr<test::FaultDisk> disk, Process& process)
        : path_(std::move(path))
        , files_(files)
        , disk_(std::move(disk))
        , file_(disk_->open())
        , process_(process) {}
    ~OpenFile() override {
        if (Files::File* file = files_.find(path_); file != nullptr && file->disk == disk_) {
            file->locked = false;
        }
    }
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    [[nodiscard]] const std::string& path() const override { return path_; }
    [[nodiscard]] std::uint64_t size() const override { return file_->size(); }
    [[nodiscard]] bool fixed_size() const override { return file_->fixed_size(); }
    Task<Result<void>> read(std::uint64_t offset, MutByteView into) override {
        co_await uninterrupted(a_turn());
        if (process_.dead) {
            co_return dead();
        }
        co_return co_await file_->read(offset, into);
    }
    Task<Result<void>> write(std::uint64_t offset, ByteView data) override {
        co_await uninterrupted(a_turn());
        if (auto may = may_write(); !may) {
            co_return may;
        }
        co_return co_await file_->write(offset, data);
    }
    Task<Result<void>> sync() override {
        co_await uninterrupted(a_turn());
        if (process_.dead) {
            co_return dead();
        }
        co_return checked(co_await file_->sync());
    }
    Task<Result<void>> write_sync(std::uint64_t offset, ByteView data) override {
        co_await uninterrupted(a_turn());
        if (auto may = may_write(); !may) {
            co_return may;
        }
        co_return checked(co_await file_->write_sync(offset, data));
    }
    Task<Result<void>> allocate(std::uint64_t offset, std::uint64_t length) override {
        co_await uninterrupted(a_turn());
        if (process_.dead) {
            co_return dead();
        }
        co_return co_await file_->allocate(offset, length);
    }

  private:
    // As util/file_watch.hpp has it.
    Result<void> may_write() {
        if (process_.dead) {
            return dead();
        }
        away_ = away_ && !in_place();
        return away_ ? Result<void>(away()) : Result<void>{};
    }
    Result<void> checked(Result<void> done) {
        if (!done || process_.dead || in_place()) {
            return done;
        }
        if (!std::exchange(away_, true)) {
            files_.put(path_ + ".rescued", disk_->content());
        }
        return away();
    }
    [[nodiscard]] bool in_place() const {
        const Files::File* there = files_.find(path_);
        return there != nullptr && there->disk == disk_;
    }
    [[nodiscard]] Error away() const {
        Error e = make_error(Errc::io, "{}: another file was renamed over it", path_);
        e.detail = ESTALE;
        return e;
    }
    [[nodiscard]] Result<void> dead() const { return make_error(Errc::io, "{}: the process is gone", path_); }

    const std::string path_;
    Files& files_;
    std::shared_ptr<test::FaultDisk> disk_;
    std::unique_ptr<BlockFile> file_;
    Process& process_;
    bool away_ = false;
};

} // namespace

Result<std::unique_ptr<BlockFile>> Io::open(const std::string& path, OpenMode mode) {
    if (process_.dead) {
        return make_error(Errc::io, "{}: the process is gone", path);
    }
    Files::File* file = files_.find(path);
    if (file == nullptr) {
        if (mode != OpenMode::create) {
            return make_error(Errc::not_found, "{}: no such file", path);
        }
        files_.put(path, {});
        file = files_.find(path);
    }
    if (file->locked) {
        return make_error(Errc::busy, "{}: open in another process", path);
    }
    file->locked = true;
    return std::make_unique<OpenFile>(path, files_, file->disk, process_);
}

} // namespace vtpmd::sim
