// Weights of 4 and 8 bits as numbers. Included once for each set of instructions (paths.h).

// Writes the first `count` of an output's 32 weights of a group.
template <typename To>
INLINE void put_row(const Vec* values, To* to, int count) {
    To row[GROUP];
    for (int v = 0; v < GROUP / LANES; v++) store((count == GROUP ? to : row) + v * LANES, values[v]);
    if (count < GROUP) std::memcpy(to, row, size_t(count) * sizeof(To));
}

// `outputs` outputs of one panel.
template <typename To>
void unpack_panel(const Weight& weight, const uint8_t* panel, const float* row, int outputs, To* to) {
    for (int64_t g = 0; g < up(weight.inputs, GROUP); g++) {
        const uint8_t* group = panel + g * weight.bytes();
        const int count = int(std::min<int64_t>(GROUP, weight.inputs - g * GROUP));
        for (int o = 0; o < outputs; o++) {
            Vec values[GROUP / LANES];
            if (weight.bits == 4) {
                uint8_t pairs[GROUP / 2];
                for (int j = 0; j < 4; j++) std::memcpy(pairs + 4 * j, group + (j * PANEL + o) * QUAD, QUAD);
                const float step = row[o] * group[NIBBLES + o], none = step * group[NIBBLES + PANEL + o] / -16.0f;
                for (int v = 0; v < GROUP / LANES; v++) {
                    // The low halves are the first 16 inputs, the high ones the others.
                    const int input = v * LANES, high = input / (GROUP / 2) * 4;
                    const Bytes some = read<Bytes>(pairs + input % (GROUP / 2));
                    const Vec levels = __builtin_convertvector(widened(some) >> high & 15, Vec);
                    values[v] = levels * step + none;
                }
            } else {
                uint8_t bytes[GROUP];
                for (int j = 0; j < GROUP / QUAD; j++)
                    std::memcpy(bytes + QUAD * j, group + (j * PANEL + o) * QUAD, QUAD);
                for (int v = 0; v < GROUP / LANES; v++) {
                    const Bytes own = read<Bytes>(bytes + v * LANES) ^ int8_t(-128);
                    values[v] = __builtin_convertvector(widened(own), Vec) * row[o];
                }
            }
            put_row(values, to + o * weight.inputs + g * GROUP, count);
        }
    }
}

// Panels `begin` to `end`.
template <typename To>
void unpack(const Weight& weight, int64_t begin, int64_t end) {
    const int64_t bytes = up(weight.inputs, GROUP) * weight.bytes();
    for (int64_t panel = begin; panel < end; panel++) {
        const int64_t output = panel * PANEL;
        const int outputs = int(std::min<int64_t>(PANEL, weight.outputs - output));
        unpack_panel(weight, weight.w + panel * bytes, weight.row + output, outputs,
                     static_cast<To*>(weight.to) + output * weight.inputs);
    }
}
