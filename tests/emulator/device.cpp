// A CUDA device that is not there: tensors that say "cuda:i" over host memory, and what torch asks of such a device.
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>

static thread_local c10::DeviceIndex current = 0;
static c10::DeviceIndex count = 1;

static c10::DeviceIndex exchange(c10::DeviceIndex index) {
  c10::DeviceIndex before = current;
  if (index >= 0) current = index;
  return before;
}

// Streams are known to Python alone (streams.py): here every device has its default stream, on which nothing waits.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device d) const override { return {type(), exchange(d.index())}; }
  c10::Device getDevice() const override { return {type(), current}; }
  void setDevice(c10::Device d) const override { exchange(d.index()); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { exchange(d.index()); }
  c10::Stream getStream(c10::Device d) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(type(), d.index() < 0 ? current : d.index()));
  }
  c10::Stream getDefaultStream(c10::Device d) const override { return getStream(d); }
  c10::Stream getNewStream(c10::Device d, int) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return count; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, new Guard());

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return count; }
  int getNumGPUs() const override { return count; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex i) const override { exchange(i); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex i) const override { return exchange(i); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex i) const override { return exchange(i); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetDefaultCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};
namespace at {
using EmulatedHooks = ::Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, EmulatedHooks)
}  // namespace at

// The same memory, sizes and strides, said to be on another device; the memory lives as long as either tensor.
at::Tensor alias_on(const at::Tensor& tensor, const std::string& name) {
  c10::Device device(name);
  if (device.is_cuda() && !device.has_index()) device = c10::Device(device.type(), current);
  auto* kept = new c10::Storage(tensor.storage());
  c10::DataPtr memory(const_cast<void*>(kept->data()), kept, [](void* p) { delete static_cast<c10::Storage*>(p); }, device);
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), kept->nbytes(),
                                                       std::move(memory), c10::GetDefaultCPUAllocator(), true);
  c10::DispatchKeySet keys(device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
  auto alias = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(storage)), keys, tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) alias._set_conj(true);
  if (tensor.is_neg()) alias._set_neg(true);
  return alias;
}

// What an operation has resized gets the new memory.
void take_over(const at::Tensor& target, const at::Tensor& source) {
  target.unsafeGetTensorImpl()->set_storage_and_dtype(source.storage(), source.dtype());
  target.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides(), source.storage_offset());
}

// A Python number that torch had made a tensor: its type counts for less than that of other tensors.
at::Tensor as_number(const at::Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

// A generator of the CPU that says it is another device's.
struct Renamed : c10::GeneratorImpl {
  static void say(const at::Generator& generator, const std::string& name) {
    static_cast<Renamed*>(generator.unsafeGetGeneratorImpl())->device_ = c10::Device(name);
  }
};

PYBIND11_MODULE(emulated_device, m) {
  m.def("alias_on", &alias_on);
  m.def("take_over", &take_over);
  m.def("as_number", &as_number);
  m.def("say_on", &Renamed::say);
  m.def("address", [](const at::Tensor& tensor) { return (int64_t)tensor.storage().data(); });
  m.def("current_device", [] { return (int)current; });
  m.def("exchange_device", [](int index) { return (int)exchange((c10::DeviceIndex)index); });
  m.def("set_device_count", [](int devices) { count = (c10::DeviceIndex)devices; });
}
