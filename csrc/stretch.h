// A stretch of a program's instructions that runs without Python: kernels, NumPy's elementwise functions and their reductions, conversions
// and guards.
//
// An operand lies at a fixed address, or at some distance from the start of an array in one of the program's registers, which each run
// fills anew. Shapes, strides and element types never change; so a kernel's arguments are read and checked once.
//
// An elementwise function is NumPy's own: its inner loops, which its C API shows, are called. The bits are NumPy's, since only functions
// that round once at most are called on pieces of an array; of the others one call does all elements, as in NumPy. Where a loop leaves a
// floating-point exception, the function is called again by NumPy, which warns or raises as it is told to.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "loops.h"
#include "prepared.h"
#include "threads.h"

namespace hg {

// The beginning of NumPy's PyUFuncObject, https://numpy.org/doc/stable/reference/c-api/types-and-structures.html
struct UFunc {
  PyObject_HEAD;
  int nin, nout, nargs, identity;
  void (**functions)(char**, const std::intptr_t*, const std::intptr_t*, void*);
  void* const* data;
  int ntypes;
};

// --- instructions ---

struct Address {
  int base;  // an index of the stretch's bases; -1 where `at` is the address itself
  std::intptr_t at;
};

class Stretch;
struct Instruction {
  virtual ~Instruction() = default;
  virtual bool run(const Stretch& stretch) = 0;  // false where a guard has another answer
};

class Stretch {
 public:
  // An operand as Python gives it: (number, offset, strides, dtype). The number is that of a register, or -1 for an address.
  using Operand = std::tuple<int, std::intptr_t, std::vector<std::intptr_t>, py::object>;

  void add_ufunc(const py::object& ufunc, int index, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape, bool split);
  void add_reduction(const py::object& ufunc, int index, const Operand& from, const Operand& to, std::vector<std::intptr_t> shape,
                     const py::object& start, const py::object& again);
  void add_conversion(const std::string& types, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape,
                      const py::object& again);
  void add_row_loop(bool places, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape, std::intptr_t size,
                    std::intptr_t step, const py::object& again);
  void add_kernel(const std::string& name, const py::dict& arguments, const std::vector<std::tuple<py::object, int, std::intptr_t>>& moving,
                  const std::vector<std::pair<std::string, int>>& numbers);
  void add_guard(int number, std::intptr_t at, bool answer);

  // What a register holds, and whether it is made by each run. Its array is compared with this before any instruction reads it.
  void expect(int number, const py::tuple& shape, const py::tuple& strides, const py::object& dtype, bool make) {
    bases_.push_back({number, shape, strides, dtype, make, nullptr, {}, {}});
    for (const py::handle size : shape) bases_.back().sizes.push_back(size.cast<std::intptr_t>());
    for (const py::handle stride : strides) bases_.back().steps.push_back(stride.cast<std::intptr_t>());
  }
  void let_go(std::vector<int> numbers) { let_go_ = std::move(numbers); }

  void begin(const py::list& registers, const py::object& empty);
  bool run(int first, int last);  // false where a guard has another answer
  void end(const py::list& registers) const {
    for (const int number : let_go_) PyList_SetItem(registers.ptr(), number, py::none().release().ptr());
  }
  bool call(const py::list& registers, const py::object& empty) {
    begin(registers, empty);
    const bool same = run(0, size());
    end(registers);
    return same;
  }
  int size() const { return static_cast<int>(instructions_.size()); }

  char* at(const Address& address) const {
    return address.base < 0 ? reinterpret_cast<char*>(address.at) : bases_[static_cast<std::size_t>(address.base)].data + address.at;
  }
  std::int64_t number(std::size_t index) const { return numbers_[index].second; }

 private:
  struct Base {
    int number;
    py::tuple shape, strides;
    py::object dtype;
    bool make;
    char* data;
    std::vector<std::intptr_t> sizes, steps;
  };
  Address address(int number, std::intptr_t offset) const {
    if (number < 0) return {-1, offset};
    for (std::size_t i = 0; i < bases_.size(); ++i)
      if (bases_[i].number == number) return {static_cast<int>(i), offset};
    throw BadArgument("stretch: register " + std::to_string(number) + " is not known, expected one that `expect` has named");
  }
  void add_loop(Inner inner, void* data, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape, bool split,
                const py::object& again);

  std::vector<Base> bases_;
  std::vector<std::pair<int, std::int64_t>> numbers_;  // registers of whole numbers
  std::vector<std::unique_ptr<Instruction>> instructions_;
  std::vector<std::unique_ptr<Row>> rows_;
  std::vector<int> let_go_;
};

// --- elementwise ---

constexpr int kMostOperands = 4;
constexpr std::int64_t kSplit = std::int64_t(1) << 15;  // elements of a task, where the threads share a loop
constexpr int kRaised = FE_DIVBYZERO | FE_OVERFLOW | FE_INVALID;

inline void clear_raised() {
  if (std::fetestexcept(kRaised) != 0) std::feclearexcept(kRaised);
}

// Axes in the order of the strides of the operand `by`, without those of one element; those that follow one another are one.
struct Axes {
  std::vector<std::intptr_t> shape, strides;  // strides (axes, operands)

  Axes(const std::vector<std::intptr_t>& whole_shape, const std::vector<std::vector<std::intptr_t>>& whole_strides, std::size_t by) {
    const std::size_t n = whole_strides.size();
    std::vector<std::size_t> order;
    for (std::size_t axis = 0; axis < whole_shape.size(); ++axis)
      if (whole_shape[axis] != 1) order.push_back(axis);
    const auto& key = whole_strides[by];
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return std::abs(key[a]) > std::abs(key[b]); });
    for (const std::size_t axis : order) {
      bool follows = !shape.empty();
      for (std::size_t k = 0; k < n; ++k)
        follows = follows && strides[strides.size() - n + k] == whole_strides[k][axis] * whole_shape[axis];
      if (follows) {
        shape.back() *= whole_shape[axis];
        strides.resize(strides.size() - n);
      } else {
        shape.push_back(whole_shape[axis]);
      }
      for (std::size_t k = 0; k < n; ++k) strides.push_back(whole_strides[k][axis]);
    }
    if (shape.empty()) {
      shape.push_back(1);
      strides.assign(n, 0);
    }
  }
};

class Loop : public Instruction {
 public:
  Inner inner;
  void* data;
  int n;  // operands, the result last
  Address operands[kMostOperands];
  std::vector<std::intptr_t> shape, strides;              // as Axes has them
  std::vector<std::intptr_t> whole_shape;                 // as Python has it
  std::vector<std::vector<std::intptr_t>> whole_strides;  // of each operand
  std::vector<py::object> dtypes;
  py::object again;
  std::int64_t tasks;

  bool run(const Stretch& stretch) override {
    char* start[kMostOperands];
    for (int k = 0; k < n; ++k) start[k] = stretch.at(operands[k]);
    bool raised = false;
    if (tasks <= 1) {
      raised = part(start, 0, shape[0]);
    } else {
      struct Shared {
        const Loop* loop;
        char** start;
        std::atomic<bool> raised{false};
      } shared{this, start};
      run_tasks(
          tasks,
          [](const void* context, std::int64_t index) {
            Shared& all = *static_cast<Shared*>(const_cast<void*>(context));
            const std::int64_t size = all.loop->shape[0], n_tasks = all.loop->tasks;
            if (all.loop->part(all.start, size * index / n_tasks, size * (index + 1) / n_tasks)) all.raised = true;
          },
          &shared);
      raised = shared.raised;
    }
    if (raised) call_again(start);
    return true;
  }

 private:
  // Rows [first, last) of the first axis; whether that raised a floating-point exception.
  bool part(char* const* start, std::intptr_t first, std::intptr_t last) const {
    clear_raised();
    const std::size_t axes = shape.size(), operand_count = static_cast<std::size_t>(n);
    char* at[kMostOperands];
    for (int k = 0; k < n; ++k) at[k] = start[k] + first * strides[static_cast<std::size_t>(k)];
    if (axes == 1) {
      const std::intptr_t length = last - first;
      inner(at, &length, strides.data(), data);
      return std::fetestexcept(kRaised) != 0;
    }
    std::intptr_t rows = last - first, place[32] = {};
    for (std::size_t axis = 1; axis + 1 < axes; ++axis) rows *= shape[axis];
    const std::intptr_t* const along = strides.data() + (axes - 1) * operand_count;
    for (std::intptr_t row = 0; row < rows; ++row) {
      char* now[kMostOperands];  // a loop may move its pointers
      std::copy(at, at + n, now);
      inner(now, &shape[axes - 1], along, data);
      for (std::size_t axis = axes - 1; axis-- > 0;) {
        const std::intptr_t* const step = strides.data() + axis * operand_count;
        for (int k = 0; k < n; ++k) at[k] += step[k];
        if (axis == 0 || ++place[axis] < shape[axis]) break;
        for (int k = 0; k < n; ++k) at[k] -= step[k] * shape[axis];
        place[axis] = 0;
      }
    }
    return std::fetestexcept(kRaised) != 0;
  }

  void call_again(char* const* start) const {
    const py::gil_scoped_acquire acquire;
    const py::int_ owner(0);  // so that the views copy nothing
    py::tuple views(static_cast<std::size_t>(n));
    for (std::size_t k = 0; k < static_cast<std::size_t>(n); ++k)
      views[k] = py::array(py::dtype::from_args(dtypes[k]), whole_shape, whole_strides[k], start[k], owner);
    again(*views);
    clear_raised();
  }
};

inline void Stretch::add_loop(Inner inner, void* data, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape, bool split,
                              const py::object& again) {
  if (operands.size() > kMostOperands || shape.size() > 32) throw BadArgument("stretch: too many operands or axes");
  auto loop = std::make_unique<Loop>();
  loop->inner = inner;
  loop->data = data;
  loop->n = static_cast<int>(operands.size());
  loop->whole_shape = std::move(shape);
  loop->again = again;
  std::int64_t elements = 1;
  for (const std::intptr_t size : loop->whole_shape) elements *= size;
  for (std::size_t k = 0; k < operands.size(); ++k) {
    const auto& [number, offset, strides, dtype] = operands[k];
    loop->operands[k] = address(number, offset);
    loop->whole_strides.push_back(strides);
    loop->dtypes.push_back(dtype);
  }
  Axes axes(loop->whole_shape, loop->whole_strides, operands.size() - 1);
  loop->shape = std::move(axes.shape);
  loop->strides = std::move(axes.strides);
  loop->tasks = split ? std::min<std::int64_t>(elements / kSplit, loop->shape[0]) : 1;
  instructions_.push_back(std::move(loop));
}

inline void Stretch::add_ufunc(const py::object& ufunc, int index, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape,
                               bool split) {
  const UFunc& known = *reinterpret_cast<const UFunc*>(ufunc.ptr());
  if (index < 0 || index >= known.ntypes || known.functions == nullptr || known.functions[index] == nullptr ||
      known.nargs != static_cast<int>(operands.size()))
    throw BadArgument("stretch: the function has no loop " + std::to_string(index));
  add_loop(known.functions[index], known.data == nullptr ? nullptr : known.data[index], operands, std::move(shape), split, ufunc);
}

inline void Stretch::add_conversion(const std::string& types, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape,
                                    const py::object& again) {
  const Inner inner = types[1] == 'f' ? conversion_to<float>(types[0]) : types[1] == 'd' ? conversion_to<double>(types[0]) : nullptr;
  if (inner == nullptr) throw BadArgument("stretch: there is no conversion " + types);
  add_loop(inner, nullptr, operands, std::move(shape), true, again);
}

inline void Stretch::add_row_loop(bool places, const std::vector<Operand>& operands, std::vector<std::intptr_t> shape, std::intptr_t size,
                                  std::intptr_t step, const py::object& again) {
  const bool wide = py::dtype::from_args(std::get<3>(operands[0])).itemsize() == 8;
  rows_.push_back(std::make_unique<Row>(Row{size, step}));
  const Inner inner = places ? (wide ? place<double> : place<float>) : (wide ? pick<double> : pick<float>);
  add_loop(inner, rows_.back().get(), operands, std::move(shape), false, again);
}

// --- reductions ---

// to[...] = start combined with the elements of `from` along the axes where `to` has stride 0; without a start with the first of them.
// Operands and order are those of NumPy's own reductions of arrays whose elements lie side by side.
class Reduction : public Instruction {
 public:
  Inner inner;
  void* data;
  Address from, to;
  std::vector<std::intptr_t> shape, strides;  // as Axes has them, of `from` and `to`
  std::vector<char> start;                    // one element; empty where there is none
  std::size_t item;
  std::vector<std::intptr_t> from_shape, from_strides, to_shape, to_strides;
  py::object dtype, again;

  bool run(const Stretch& stretch) override {
    char *const in = stretch.at(from), *const out = stretch.at(to);
    clear_raised();
    walk(0, in, out, true);
    if (std::fetestexcept(kRaised) != 0) {
      const py::gil_scoped_acquire acquire;
      const py::int_ owner(0);
      const py::dtype type = py::dtype::from_args(dtype);
      again(py::array(type, from_shape, from_strides, in, owner), py::array(type, to_shape, to_strides, out, owner));
      clear_raised();
    }
    return true;
  }

 private:
  // The axes from `axis` on. Args: first: whether nothing was written to `out` yet.
  void walk(std::size_t axis, char* in, char* out, bool first) const {
    const std::intptr_t size = shape[axis], in_step = strides[2 * axis], out_step = strides[2 * axis + 1];
    if (axis + 1 < shape.size()) {
      for (std::intptr_t i = 0; i < size; ++i) walk(axis + 1, in + i * in_step, out + i * out_step, first && (out_step != 0 || i == 0));
      return;
    }
    std::intptr_t done = 0;
    if (first) {  // a reduced axis has one result here, the others one for each element
      for (std::intptr_t i = 0; i < (out_step == 0 ? 1 : size); ++i)
        std::memcpy(out + i * out_step, start.empty() ? in + i * in_step : start.data(), item);
      if (start.empty()) done = out_step == 0 ? 1 : size;
    }
    const std::intptr_t length = size - done, steps[3] = {out_step, in_step, out_step};
    char* operands[3] = {out, in + done * in_step, out};
    if (length > 0) inner(operands, &length, steps, data);
  }
};

inline void Stretch::add_reduction(const py::object& ufunc, int index, const Operand& from, const Operand& to,
                                   std::vector<std::intptr_t> shape, const py::object& start, const py::object& again) {
  const UFunc& known = *reinterpret_cast<const UFunc*>(ufunc.ptr());
  if (index < 0 || index >= known.ntypes || known.functions == nullptr || known.functions[index] == nullptr || known.nargs != 3)
    throw BadArgument("stretch: the function has no loop " + std::to_string(index));
  auto reduction = std::make_unique<Reduction>();
  reduction->inner = known.functions[index];
  reduction->data = known.data == nullptr ? nullptr : known.data[index];
  reduction->from = address(std::get<0>(from), std::get<1>(from));
  reduction->to = address(std::get<0>(to), std::get<1>(to));
  reduction->dtype = std::get<3>(from);
  reduction->item = py::dtype::from_args(reduction->dtype).itemsize();
  reduction->again = again;
  reduction->from_strides = std::get<2>(from);
  reduction->to_strides = std::get<2>(to);
  for (std::size_t axis = 0; axis < shape.size(); ++axis) reduction->to_shape.push_back(reduction->to_strides[axis] == 0 ? 1 : shape[axis]);
  if (!start.is_none()) {
    const auto element = py::reinterpret_borrow<py::array>(start);
    const char* const bytes = static_cast<const char*>(element.data());
    reduction->start.assign(bytes, bytes + reduction->item);
  }
  Axes axes(shape, {reduction->from_strides, reduction->to_strides}, 0);
  reduction->shape = std::move(axes.shape);
  reduction->strides = std::move(axes.strides);
  reduction->from_shape = std::move(shape);
  instructions_.push_back(std::move(reduction));
}

// --- guards ---

struct Guard : Instruction {
  Address address;
  bool answer;
  bool run(const Stretch& stretch) override { return (*stretch.at(address) != 0) == answer; }
};

inline void Stretch::add_guard(int number, std::intptr_t at, bool answer) {
  auto guard = std::make_unique<Guard>();
  guard->address = address(number, at);
  guard->answer = answer;
  instructions_.push_back(std::move(guard));
}

// --- kernels ---

struct KernelCall : Instruction {
  Prepared prepared;
  std::vector<std::pair<View*, Address>> moving;
  std::vector<std::pair<double*, std::size_t>> numbers;
  KernelCall(const std::string& name, const py::dict& arguments) : prepared(name, arguments, py::none()) {}
  bool run(const Stretch& stretch) override {
    for (const auto& [view, address] : moving) view->data = stretch.at(address);
    for (const auto& [attribute, index] : numbers) *attribute = static_cast<double>(stretch.number(index));
    prepared.launch();
    return true;
  }
};

inline void Stretch::add_kernel(const std::string& name, const py::dict& arguments,
                                const std::vector<std::tuple<py::object, int, std::intptr_t>>& moving,
                                const std::vector<std::pair<std::string, int>>& numbers) {
  auto call = std::make_unique<KernelCall>(name, arguments);
  for (const auto& [array, number, offset] : moving)
    for (View* const view : call->prepared.views_of(array)) call->moving.emplace_back(view, address(number, offset));
  for (const auto& [attribute, number] : numbers) {
    call->numbers.emplace_back(&call->prepared.attribute(attribute), numbers_.size());
    numbers_.emplace_back(number, 0);
  }
  call->prepared.let_go();
  instructions_.push_back(std::move(call));
}

// --- a run ---

inline void Stretch::begin(const py::list& registers, const py::object& empty) {
  for (auto& [number, value] : numbers_) value = registers[static_cast<std::size_t>(number)].cast<std::int64_t>();
  for (Base& base : bases_) {
    const auto number = static_cast<std::size_t>(base.number);
    if (base.make) registers[number] = empty(base.shape, base.dtype);
    const py::handle found = PyList_GetItem(registers.ptr(), base.number);
    bool same = py::isinstance<py::array>(found);
    if (same) {
      const auto array = py::reinterpret_borrow<py::array>(found);
      base.data = static_cast<char*>(const_cast<void*>(array.data()));
      same = array.ndim() == static_cast<py::ssize_t>(base.sizes.size()) && array.dtype().equal(base.dtype) &&
             reinterpret_cast<std::uintptr_t>(base.data) % static_cast<std::size_t>(array.itemsize()) == 0;
      for (std::size_t i = 0; same && i < base.sizes.size(); ++i)
        same = array.shape(static_cast<py::ssize_t>(i)) == base.sizes[i] &&
               (base.sizes[i] == 1 || array.strides(static_cast<py::ssize_t>(i)) == base.steps[i]);
    }
    if (!same) throw BadArgument("stretch: an array is unlike that of the recording");
  }
}

inline bool Stretch::run(int first, int last) {
  const py::gil_scoped_release release;
  for (int i = first; i < last; ++i)
    if (!instructions_[static_cast<std::size_t>(i)]->run(*this)) return false;
  return true;
}

}  // namespace hg
