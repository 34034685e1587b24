// The kernel of cross_entropy.cpp over one set of instructions.

// The loss of a row, log(sum of exponentials) - logit of the label. With `gradient` each logit becomes its share of the
// sum, less 1 at the label.
template <class Kind>
float cross_entropy_row(Kind* logits, int64_t label, int64_t count, bool gradient) {
    Vec high = all(-INFINITY), total = all(0);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) high = most(load(logits + i), high);
    float highest = most(high);
    for (; i < count; i++) highest = std::max(highest, one(logits[i]));
    for (i = 0; i + LANES <= count; i += LANES) total += exponential(load(logits + i) - highest);
    float exponentials = sum(total);
    for (; i < count; i++) exponentials += exponential(all(one(logits[i]) - highest))[0];
    // Relative to the largest logit: log(sum of exponentials) itself would round away what a likely label lacks to 1.
    const float log_sum = std::log(exponentials), of_label = one(logits[label]) - highest;
    if (gradient) {
        for (i = 0; i + LANES <= count; i += LANES)
            store(logits + i, exponential(load(logits + i) - highest - log_sum));
        for (; i < count; i++) put(logits + i, exponential(all(one(logits[i]) - highest - log_sum))[0]);
        put(logits + label, exponential(all(of_label - log_sum))[0] - 1.0f);
    }
    return log_sum - of_label;
}
