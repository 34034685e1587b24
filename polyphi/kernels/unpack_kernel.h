// Weights of 4, 6 and 8 bits as numbers. Included once for each set of instructions (paths.h).

// Writes the first `count` of an output's weights of a block.
template <typename To>
INLINE void put_row(const Vec* values, To* to, int count) {
    To row[BLOCK];
    for (int v = 0; v < BLOCK / LANES; v++) store((count == BLOCK ? to : row) + v * LANES, values[v]);
    if (count < BLOCK) std::memcpy(to, row, size_t(count) * sizeof(To));
}

// `outputs` outputs of one panel.
template <typename To>
void unpack_panel(const Weight& weight, const uint8_t* panel, const float* row, int outputs, To* to) {
    const int bits = weight.bits;
    const uint8_t* scales = panel + weight.blocks() * block_bytes(bits);
    for (int64_t b = 0; b < weight.blocks(); b++) {
        const uint8_t* block = panel + b * block_bytes(bits);
        const int count = int(std::min<int64_t>(BLOCK, weight.inputs - b * BLOCK));
        for (int o = 0; o < outputs; o++) {
            uint8_t bytes[BLOCK];
            levels(bits, block, o, bytes);
            Vec values[BLOCK / LANES];
            for (int v = 0; v < BLOCK / LANES; v++) {
                const uint8_t* four = block + v * LANES / GROUP * BYTES4 + NIBBLES + o;
                const float step = row[o] * (bits == 4 ? four[0] : scales[b * PANEL + o]);
                const float zero = bits == 4 ? four[PANEL] / 16.0f : bits == 6 ? 32.0f : 128.0f;
                const Bits level = as<Bits>(widened(read<Bytes>(bytes + v * LANES))) & 255;
                values[v] = (__builtin_convertvector(level, Vec) - zero) * step;
            }
            put_row(values, to + o * weight.inputs + b * BLOCK, count);
        }
    }
}

// Panels `begin` to `end`.
template <typename To>
void unpack(const Weight& weight, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
        const int64_t output = panel * PANEL;
        const int outputs = int(std::min<int64_t>(PANEL, weight.outputs - output));
        unpack_panel(weight, weight.w + panel * panel_bytes(weight.bits, weight.blocks()), weight.row + output, outputs,
                     static_cast<To*>(weight.to) + output * weight.inputs);
    }
}
