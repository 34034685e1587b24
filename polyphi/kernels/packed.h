// The layout of packed weights of 4 and 8 bits.
//
// 4 bits: a weight is row * s * (q - z / 16), with q from 0 to 15; s and z are a byte each per output and group of 32
// inputs, row is a float per output. Weights are packed in panels of 32 outputs, and a panel in groups of 576 bytes,
// read in one stream: 512 bytes of nibbles, 32 s, 32 z. Of the nibbles, part j (of 4) is 128 bytes, 4 for each output:
// low ones have the inputs 4j..4j+3, high ones 16+4j..16+4j+3, so that 32 bits are four consecutive inputs of one
// output, as dot-product instructions require.
//
// 8 bits: a weight is row * (u - 128), with u from 1 to 255. A panel is a sequence of four inputs each: 128 bytes, 4
// for each output.
#pragma once

#include "native.h"

namespace polyphi {

constexpr int GROUP = 32;                    // inputs with one scale; inputs are padded to a multiple
constexpr int QUAD = 4;                      // inputs of one output in 32 bits
constexpr int PANEL = 32;                    // outputs of a panel
constexpr int NIBBLES = PANEL * GROUP / 2;   // bytes before a group's s
constexpr int BYTES4 = NIBBLES + 2 * PANEL;  // of a group: nibbles, s, z
constexpr int BYTES8 = PANEL * GROUP;        // of a group in 8 bits

}  // namespace polyphi
