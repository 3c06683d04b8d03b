// From one bit a tile to the columns of the tiles present: the second half of detect.
#pragma once
#include "simd.h"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The bits of tile columns from `first` on, and what is asked for meanwhile: ahead[0, ahead_bytes) of each word.
struct Bits {
  const uint64_t* words;
  int64_t count, first;
  const char* ahead;
  int64_t ahead_bytes;

  void prefetch(int64_t w) const {
    for (int64_t i = 0; i < ahead_bytes; i += 64) __builtin_prefetch(ahead + w * ahead_bytes + i);
  }
  int64_t present() const {
    int64_t bits = 0;
    for (int64_t w = 0; w < count; ++w) bits += __builtin_popcountll(words[w]);
    return bits;
  }
  Bits from(int64_t w, int64_t n) const {
    return {words + w, n, first + 64 * w, ahead_bytes ? ahead + w * ahead_bytes : ahead, ahead_bytes};
  }
};

// Writes the first columns present into out[0, room).
template <class Index>
void write(const Bits& bits, Index* out, int64_t room) {
  if (has_compress_bytes()) return write_compressed(bits, out, room);
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  typedef Index Eight __attribute__((vector_size(8 * sizeof(Index))));
  typedef Index LooseEight __attribute__((vector_size(8 * sizeof(Index)), aligned(1), may_alias));
  constexpr int kFew = 8;  // set bits up to which taking them one by one is faster than eight bytes from the table
  Index* const end = out + room;
  for (int64_t w = 0; w < bits.count && out < end; ++w) {
    bits.prefetch(w);
    uint64_t word = bits.words[w];
    if (word == 0) continue;
    const Index base = Index(bits.first + w * 64);
    const int count = __builtin_popcountll(word);
    if (end - out < 64 + 8) {
      for (; word != 0 && out < end; word &= word - 1) *out++ = Index(base + __builtin_ctzll(word));
    } else if (count <= kFew) {
      // As many stores for one bit as for eight: a loop that ends when the bits do is predicted wrong at every word.
#pragma GCC unroll 8
      for (int i = 0; i < kFew; ++i, word &= word - 1) out[i] = Index(base + __builtin_ctzll(word | uint64_t(1) << 63));
      out += count;
    } else {
      for (int byte = 0; byte < 8; ++byte) {
        Bytes places;
        memcpy(&places, kSetBits.of[word >> (8 * byte) & 0xff], 8);
        *reinterpret_cast<LooseEight*>(out) = __builtin_convertvector(places, Eight) + Index(base + 8 * byte);
        out += __builtin_popcountll(word >> (8 * byte) & 0xff);
      }
    }
  }
}

// The same past the caches: a line that is written whole need not be read first. Indices are collected in L1, because
// rows begin anywhere within a line.
template <class Index>
void write_streamed(const Bits& bits, Index* out, int64_t room) {
  constexpr int64_t kWords = 16, kLine = 64 / int64_t(sizeof(Index)), kVec = kWidth / int64_t(sizeof(Index));
  constexpr int64_t kSpill = 64 + 8;  // with that much room behind them indices are written whole words at a time
  alignas(64) Index collected[kLine + kWords * 64 + kSpill];
  // collected[begin, held) belongs to line[begin, held), where line is the start of a line of the cache.
  int64_t begin = int64_t(reinterpret_cast<uintptr_t>(out) % 64 / sizeof(Index)), held = begin;
  Index* line = out - begin;
  for (int64_t w = 0; w < bits.count && room > 0; w += kWords) {
    const Bits some = bits.from(w, least(kWords, bits.count - w));
    const int64_t count = some.present();
    write(some, collected + held, count + kSpill);
    held += least(count, room);
    room -= least(count, room);
    if (held < kLine) continue;
    int64_t at = 0;
    if (begin > 0) {
      memcpy(line + begin, collected + begin, size_t(kLine - begin) * sizeof(Index));
      begin = 0;
      at = kLine;
    }
    for (; at + kLine <= held; at += kLine)
      for (int64_t i = 0; i < kLine; i += kVec) stream(line + at + i, load(collected + at + i));
    for (int64_t i = 0; i < kLine; i += kVec) store(collected + i, load(collected + at + i));
    line += at;
    held -= at;
  }
  memcpy(line + begin, collected + begin, size_t(held - begin) * sizeof(Index));
  end_stream();
}

}  // namespace
}  // namespace gossamer::GOSSAMER_ISA
