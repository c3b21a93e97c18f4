// A whole rollout of one candidate: the rule, the start, the frames as tokens.
#pragma once

#include "rollout.cuh"

namespace nca {
namespace cuda {

template <int S>
NCA_FN void number_places(const Team& team, const Law& law, const TeamMemory<S>& memory) {
  team.phase([&](int lane) {
    for (int cell = lane; cell < law.cells; cell += team.size) {
      memory.place[cell] = static_cast<uint16_t>((cell / law.width + 1) * law.stride + cell % law.width + 1);
    }
    if (lane == 0) *memory.num_doubtful = 0;
  });
}

// Words 0 .. cells - 1 of the stream are the cells', four a draw; the shared logits follow (rollout_cpu.cpp).
template <int S>
NCA_FN void draw_start(const Team& team, const Law& law, const TeamMemory<S>& memory, const Stream& stream) {
  const bool uniform = law.initial_state == INITIAL_UNIFORM;
  if (!uniform) {
    team.phase([&](int lane) {
      for (int s = lane; s < law.num_states; s += team.size) {
        const uint32_t draw = static_cast<uint32_t>((law.cells + 3) / 4 + s / 4);
        const Bits bits = bits_at(stream, 0, draw);
        const uint32_t low = s & 1 ? bits.word[1] : bits.word[0], high = s & 1 ? bits.word[3] : bits.word[2];
        memory.start_logit[s] = standard_normal(symmetric_uniform(s & 2 ? high : low));
      }
    });
    team.phase([&](int lane) {
      float best = memory.start_logit[0];
      for (int s = 1; s < law.num_states; ++s) best = larger(best, memory.start_logit[s]);
      for (int s = lane; s < law.num_states; s += team.size) {
        memory.start_weight[s] = exp32(memory.start_logit[s] - best);
      }
    });
  }
  team.phase([&](int lane) {
    float total = 0.0f;
    for (int s = 0; !uniform && s < law.num_states; ++s) total += memory.start_weight[s];
    for (int draw = lane; 4 * draw < law.cells; draw += team.size) {
      const Bits bits = bits_at(stream, 0, static_cast<uint32_t>(draw));
      NCA_UNROLLED
      for (int k = 0; k < 4; ++k) {
        uint32_t state = 0;
        if (uniform) {
          const uint32_t states = static_cast<uint32_t>(law.num_states);
          state = static_cast<uint32_t>(static_cast<uint64_t>(bits.word[k]) * states >> 32);
        } else {
          const float target = unit_uniform(bits.word[k]) * total;
          float cumulative = 0.0f;
          for (int s = 0; s + 1 < law.num_states; ++s) {
            cumulative += memory.start_weight[s];
            state += cumulative <= target;
          }
        }
        if (4 * draw + k < law.cells) memory.now[memory.place[4 * draw + k]] = static_cast<uint8_t>(state);
      }
    }
  });
  team.phase([&](int lane) { fill_border(team, law, memory.now, lane); });
}

NCA_FN void store_token(const Rollouts& job, size_t at, uint32_t token) {
  if (job.wide) {
    static_cast<int32_t*>(job.tokens)[at] = static_cast<int32_t>(token);
  } else {
    static_cast<uint16_t*>(job.tokens)[at] = static_cast<uint16_t>(token);
  }
}

// Patches row-major; the first cell of a patch is the least significant digit.
NCA_FN void store_frame(const Team& team, const Rollouts& job, const uint8_t* states, size_t at, int lane) {
  const Law& law = job.law;
  const int across = law.width / law.patch;
  for (int i = lane; i < law.patches; i += team.size) {
    const uint8_t* corner = states + (i / across * law.patch + 1) * law.stride + i % across * law.patch + 1;
    uint32_t token = 0;
    for (int y = law.patch - 1; y >= 0; --y) {
      for (int x = law.patch - 1; x >= 0; --x) {
        token = token * static_cast<uint32_t>(law.num_states) + corner[y * law.stride + x];
      }
    }
    store_token(job, at + static_cast<size_t>(i + job.delimiters), token);
  }
  if (job.delimiters && lane == 0) {
    store_token(job, at, law.start_token);
    store_token(job, at + static_cast<size_t>(law.patches) + 1, law.start_token + 1);
  }
}

// Rollout `index` of the job. A team behind the last works as the last one does, and stores nothing.
template <int S>
NCA_FN void roll_out(const Team& team, const Rollouts& job, uint32_t index, uint8_t* shared) {
  const bool stored = index < job.count;
  const uint32_t which = stored ? index : job.count - 1;
  const uint32_t candidate = job.candidates ? job.candidates[which] : job.first + which;
  const uint32_t repeat = job.repeats ? job.repeats[which] : 0;
  const Stream noise{job.seed, candidate, job.noise_purpose, repeat};
  const size_t of_frame = static_cast<size_t>(job.law.patches + 2 * job.delimiters);
  size_t at = static_cast<size_t>(which) * of_frame * static_cast<size_t>(job.frames);

  TeamMemory<S> memory(job.law, shared);
  number_places(team, job.law, memory);
  draw_rule(team, job.law, Stream{job.seed, candidate, PURPOSE_RULE, 0}, memory.rule);
  draw_start(team, job.law, memory, Stream{job.seed, candidate, job.start_purpose, repeat});
  uint32_t step = 0;
  NCA_UNROLL_NONE
  for (int frame = 0; frame < job.frames; ++frame, at += of_frame) {
    const uint32_t until = step + static_cast<uint32_t>(frame == 0 ? job.law.burn_in_steps : job.law.steps_per_frame);
    NCA_UNROLL_NONE
    for (; step < until; ++step) update(team, job.law, memory, noise, step);
    team.phase([&](int lane) {
      if (stored) store_frame(team, job, memory.now, at, lane);
    });
  }
}

}  // namespace cuda
}  // namespace nca
