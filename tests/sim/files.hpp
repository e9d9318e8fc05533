// The files of a simulated host, and how a process of it sees them.
#pragma once

#include "fault_file.hpp"
#include "process.hpp"

#include <map>
#include <memory>
#include <set>
#include <string>

namespace vtpmd::sim {

class Files {
  public:
    struct File {
        explicit File(Bytes content = {})
            : disk(std::make_shared<test::FaultDisk>(std::move(content))) {}
        std::shared_ptr<test::FaultDisk> disk;
        bool locked = false;
    };

    /// nullptr: there is none.
    [[nodiscard]] File* find(const std::string& path) {
        auto it = files_.find(path);
        return it == files_.end() ? nullptr : &it->second;
    }
    /// Another file of that name: who has the old one open keeps that.
    void put(const std::string& path, Bytes content) { files_.insert_or_assign(path, File(std::move(content))); }
    [[nodiscard]] Bytes content(const std::string& path) {
        File* file = find(path);
        return file == nullptr ? Bytes{} : file->disk->content();
    }
    [[nodiscard]] std::map<std::string, File>& all() { return files_; }
    [[nodiscard]] const std::map<std::string, File>& all() const { return files_; }

  private:
    std::map<std::string, File> files_;
};

/// What a process opens. A dead one's requests change nothing.
class Io final : public BlockIo {
  public:
    Io(Files& files, Process& process)
        : files_(files)
        , process_(process) {}
    Result<std::unique_ptr<BlockFile>> open(const std::string& path, OpenMode mode) override;

  private:
    Files& files_;
    Process& process_;
};

} // namespace vtpmd::sim
