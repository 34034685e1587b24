// The layout of packed weights of 4, 6 and 8 bits.
//
// Inputs are padded to whole blocks of 64, and weights are packed in panels of 32 outputs, so that a panel is read in
// one stream. `row` is a float per output. Inputs may be rotated (rotation_kernel.h), which the layout doesn't show.
//
// 4 bits: a weight is row * s * (q - z / 16), with q from 0 to 15; s and z are a byte each per output and group of 32
// inputs. A panel consists of groups of 576 bytes: 512 bytes of nibbles, 32 s, 32 z. Of the nibbles, part j (of 4) is
// 128 bytes, 4 for each output: low ones have the inputs 4j..4j+3, high ones 16+4j..16+4j+3, so that 32 bits are four
// consecutive inputs of one output, as dot-product instructions require.
//
// 8 bits: a weight is row * s * (u - 128), with u from 1 to 255; s is a byte per output and block. A block is a sequence
// of four inputs each: 128 bytes, 4 for each output. The scales of all blocks, 32 bytes each, follow the last block, and
// a panel ends at a multiple of 64 bytes.
//
// 6 bits: a weight is row * s * (u - 32), with u from 1 to 63, and scales as in 8 bits. A block is the low four bits of
// both of its groups as in 4 bits, 1,024 bytes, and then the high two bits of each group, 256 bytes: two parts of 128
// bytes, 4 for each output, with the inputs of the low and of the high nibbles; two bits of a byte are part j, j = 0 the
// lowest.
#pragma once

#include "native.h"

namespace polyphi {

constexpr int GROUP = 32;                    // inputs with one scale in 4 bits
constexpr int BLOCK = 64;                    // inputs with one scale of activations, which are rotated together
constexpr int QUAD = 4;                      // inputs of one output in 32 bits
constexpr int PANEL = 32;                    // outputs of a panel
constexpr int NIBBLES = PANEL * GROUP / 2;   // bytes before a group's s
constexpr int BYTES4 = NIBBLES + 2 * PANEL;  // of a group in 4 bits: nibbles, s, z

// Bytes of a block of a panel; in 4 bits with its scales.
constexpr int block_bytes(int bits) { return bits == 4 ? 2 * BYTES4 : PANEL * BLOCK * bits / 8; }

// Bytes of a panel.
constexpr int64_t panel_bytes(int bits, int64_t blocks) {
    return blocks * block_bytes(bits) + (bits == 4 ? 0 : (blocks * PANEL + 63) / 64 * 64);
}

}  // namespace polyphi
