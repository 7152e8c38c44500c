// What a model's layers are, and what an engine may take at once.
#pragma once

#include "kernels.h"

namespace trilobit {

inline constexpr int kMaxHeadDim = 1024;

// Hugging Face's names.
struct Config {
    int vocab_size;
    int hidden_size;
    int intermediate_size;
    int num_hidden_layers;
    int num_attention_heads;
    int num_key_value_heads;
    int head_dim;
    float rms_norm_eps;
    float projection_norm_eps = 0;
    Activation hidden_act = Activation::relu2;
    float embedding_scale = 1;
    float query_pre_attn_scalar = 0; // scores are divided by its root
    float attention_factor = 1;      // of cosines and sines (YaRN)
    int sliding_window = 0;          // positions that sliding layers see
};

struct Capacity {
    int threads;
    int batch_tokens; // tokens of one forward
    int kv_blocks;    // blocks of kKvBlock positions, shared by all sequences
    KvType kv_type;
};

} // namespace trilobit
