// The machine's Xen, opened when an endpoint or the way to the manager first needs it.
#pragma once

#include "util/runtime.hpp"
#include "xen/fabric.hpp"

#include <memory>

namespace vtpmd::instance {

class XenAccess {
  public:
    /// `fabric`: what stands for the machine's own (tests); not started.
    explicit XenAccess(RuntimeDeps deps, std::unique_ptr<xen::Fabric> fabric = nullptr)
        : deps_(deps)
        , fabric_(std::move(fabric)) {}

    /// Started. Errors as of xen::open_fabric().
    Result<xen::Fabric*> get() {
        if (!fabric_) {
            auto opened = xen::open_fabric(deps_.executor, deps_.clock, deps_.log);
            if (!opened) {
                return std::move(opened).error();
            }
            fabric_ = std::move(*opened);
        }
        if (!started_) {
            fabric_->start();
            started_ = true;
        }
        return fabric_.get();
    }
    /// After all that uses it; always before the destructor.
    Task<> stop() {
        if (started_) {
            started_ = false;
            co_await fabric_->stop();
        }
    }

  private:
    RuntimeDeps deps_;
    std::unique_ptr<xen::Fabric> fabric_;
    bool started_ = false;
};

} // namespace vtpmd::instance
