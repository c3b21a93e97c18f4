// One candidate on a team: its rule drawn, its grid started, updated and cut into tokens, all in shared memory.
//
// The arithmetic is nca_cell.h's, cell for cell: a row of the neighbourhood is (left + centre) + right, rows are summed
// top to bottom, hidden values and logits are chains of fmaf in the order of their inputs. A drawn rule has no biases;
// a sum that begins at its first row instead of at 0 differs at most in the sign of a zero, which nothing here sees.
#pragma once

#include "../nca_cell.h"
#include "job.h"
#include "team.cuh"

namespace nca {
namespace cuda {

constexpr float NEVER = -__builtin_huge_valf();  // logit of a state that the law does not have

// `S` is the number of states that a kernel is compiled for; a law may have fewer.
template <int S>
struct RuleMemory {
  static constexpr int QUARTERS = (S + 3) / 4;
  Features table[NUM_NEIGHBOURS][S + 2];
  Features hidden[NUM_HIDDEN];             // the four weights of a hidden value
  Features logit[NUM_HIDDEN][QUARTERS];    // the weights that a hidden value has in the logits, four at a time
};

// A team's share of shared memory; job.h counts its bytes.
template <int S>
struct TeamMemory {
  static_assert(sizeof(RuleMemory<S>) == rule_floats(S) * sizeof(float), "job.h counts otherwise");
  RuleMemory<S>& rule;
  float* start_logit;     // MAX_STATES
  float* start_weight;    // MAX_STATES
  uint32_t* num_doubtful;
  uint16_t* place;        // of each cell in a bordered grid
  uint16_t* doubtful;     // cells whose next state is to be drawn
  uint8_t* now;           // states with a border of one cell that repeats the opposite side
  uint8_t* next;

  NCA_MEMBER TeamMemory(const Law& law, uint8_t* memory)
      : rule(*reinterpret_cast<RuleMemory<S>*>(memory)),
        start_logit(reinterpret_cast<float*>(memory + sizeof(RuleMemory<S>))), start_weight(start_logit + MAX_STATES),
        num_doubtful(reinterpret_cast<uint32_t*>(start_weight + MAX_STATES)),
        place(reinterpret_cast<uint16_t*>(num_doubtful + 1)), doubtful(place + law.cells),
        now(reinterpret_cast<uint8_t*>(doubtful + law.cells)), next(now + law.places()) {}
};

// Where value `index` of a rule's draw goes. Channels padded by wrap stand behind the states until they are folded.
template <int S>
NCA_FN float& weight_at(const Law& law, RuleMemory<S>& rule, int index) {
  const int of_table = NUM_NEIGHBOURS * law.channels * NUM_FEATURES, of_hidden = NUM_FEATURES * NUM_HIDDEN;
  if (index < of_table) {
    const int channel = index / NUM_FEATURES % law.channels;
    const bool moved = law.wrap_channels && channel <= law.num_states;
    const int state = !moved ? channel : channel == 0 ? law.num_states : channel - 1;
    return rule.table[index / NUM_FEATURES / law.channels][state].value[index % NUM_FEATURES];
  }
  index -= of_table;
  if (index < of_hidden) return rule.hidden[index % NUM_HIDDEN].value[index / NUM_HIDDEN];
  index -= of_hidden;
  const int state = index % law.num_states;
  return rule.logit[index / law.num_states][state / 4].value[state % 4];
}

template <int S>
NCA_FN void draw_rule(const Team& team, const Law& law, const Stream& stream, RuleMemory<S>& rule) {
  team.phase([&](int lane) {
    float* logit = rule.logit[0][0].value;
    for (int i = lane; i < NUM_HIDDEN * RuleMemory<S>::QUARTERS * 4; i += team.size) logit[i] = 0.0f;
  });
  team.phase([&](int lane) {
    const int of_table = NUM_NEIGHBOURS * law.channels * NUM_FEATURES, of_hidden = NUM_FEATURES * NUM_HIDDEN;
    const int total = of_table + of_hidden + NUM_HIDDEN * law.num_states;
    for (int draw = lane; 4 * draw < total; draw += team.size) {
      const Bits bits = bits_at(stream, 0, static_cast<uint32_t>(draw));
      NCA_UNROLLED
      for (int k = 0; k < 4; ++k) {  // all three counts are multiples of four: no draw is cut
        const int index = 4 * draw + k, part = index < of_table ? 0 : index < of_table + of_hidden ? 1 : 2;
        const float deviation = part == 0 ? law.deviation[0] : part == 1 ? law.deviation[1] : law.deviation[2];
        weight_at(law, rule, index) = truncated_normal(symmetric_uniform(bits.word[k])) * deviation;
      }
    }
  });
  if (!law.wrap_channels) return;
  team.phase([&](int lane) {
    for (int i = lane; i < NUM_NEIGHBOURS * NUM_FEATURES; i += team.size) {
      Features* row = rule.table[i / NUM_FEATURES];
      const int k = i % NUM_FEATURES;
      row[0].value[k] += row[law.num_states + 1].value[k];
      row[law.num_states - 1].value[k] += row[law.num_states].value[k];
    }
  });
}

template <int S>
NCA_FN void features_at(const RuleMemory<S>& rule, const uint8_t* states, int stride, float (&sum)[NUM_FEATURES]) {
  NCA_UNROLLED
  for (int row = 0; row < NUM_ROWS; ++row) {
    const uint8_t* at = states + (row - 1) * stride;
    const Features left = rule.table[3 * row][at[-1]], centre = rule.table[3 * row + 1][at[0]];
    const Features right = rule.table[3 * row + 2][at[1]];
    NCA_UNROLLED
    for (int k = 0; k < NUM_FEATURES; ++k) {
      const float of_row = (left.value[k] + centre.value[k]) + right.value[k];
      sum[k] = row == 0 ? of_row : sum[k] + of_row;
    }
  }
}

// Hidden values are used as they come, so that none waits in a register.
template <int S, int CELLS>
NCA_FN void logits_of(const RuleMemory<S>& rule, int num_states, const float (&features)[CELLS][NUM_FEATURES],
                      float (&logits)[CELLS][S]) {
  NCA_UNROLLED
  for (int s = 0; s < S; ++s) {
    NCA_UNROLLED
    for (int c = 0; c < CELLS; ++c) logits[c][s] = s < num_states ? 0.0f : NEVER;
  }
  NCA_UNROLLED_TWICE
  for (int j = 0; j < NUM_HIDDEN; ++j) {
    const Features weight = rule.hidden[j];
    float hidden[CELLS];
    NCA_UNROLLED
    for (int c = 0; c < CELLS; ++c) {
      float sum = 0.0f;
      NCA_UNROLLED
      for (int k = 0; k < NUM_FEATURES; ++k) sum = fma32(features[c][k], weight.value[k], sum);
      hidden[c] = larger(sum, 0.0f);
    }
    NCA_UNROLLED
    for (int quarter = 0; quarter < RuleMemory<S>::QUARTERS; ++quarter) {
      const Features weights = rule.logit[j][quarter];
      NCA_UNROLLED
      for (int s = 4 * quarter; s < (4 * quarter + 4 < S ? 4 * quarter + 4 : S); ++s) {
        NCA_UNROLLED
        for (int c = 0; c < CELLS; ++c) logits[c][s] = fma32(hidden[c], weights.value[s % 4], logits[c][s]);
      }
    }
  }
}

// The present state's logit rises. Then the best logit, its first index and the second best (nca_cell.h).
template <int S>
NCA_FN void best_of(float (&logits)[S], float identity_bias, int present, float& best, float& second, int& state) {
  if (identity_bias != 0.0f) {
    NCA_UNROLLED
    for (int s = 0; s < S; ++s) logits[s] = s == present ? logits[s] + identity_bias : logits[s];
  }
  best = logits[0];
  second = NEVER;
  state = 0;
  NCA_UNROLLED
  for (int s = 1; s < S; ++s) {
    second = larger(second, smaller(best, logits[s]));
    state = logits[s] > best ? s : state;
    best = larger(best, logits[s]);
  }
}

// The next state of all cells, drawn or not: cells where a second logit lies within the window are put on a list.
template <int S>
NCA_FN void take_best(const Team& team, const Law& law, const TeamMemory<S>& memory, int lane) {
  constexpr int CELLS = cells_of_lane(S);
  NCA_UNROLL_NONE
  for (int first = lane; first < law.cells + lane; first += CELLS * team.size) {
    float features[CELLS][NUM_FEATURES], logits[CELLS][S];
    NCA_UNROLLED
    for (int c = 0; c < CELLS; ++c) {
      const int cell = first + c * team.size;
      const int place = memory.place[cell < law.cells ? cell : law.cells - 1];  // behind the last cell, the last again
      features_at(memory.rule, memory.now + place, law.stride, features[c]);
    }
    logits_of<S, CELLS>(memory.rule, law.num_states, features, logits);
    NCA_UNROLLED
    for (int c = 0; c < CELLS; ++c) {
      const int cell = first + c * team.size;
      if (cell >= law.cells) break;
      const int place = memory.place[cell];
      float best, second;
      int state;
      best_of(logits[c], law.sampling.identity_bias, memory.now[place], best, second, state);
      memory.next[place] = static_cast<uint8_t>(state);
      if (second >= best - law.sampling.window) {
        memory.doubtful[take_number(memory.num_doubtful)] = static_cast<uint16_t>(cell);
      }
    }
  }
}

// About one cell in seventy at the released temperature. Its logits are computed once more: to keep those of all cells
// would take more shared memory than the rule, and to draw at once would make the warp wait nine times.
template <int S>
NCA_FN void draw_doubtful(const Team& team, const Law& law, const TeamMemory<S>& memory, const Stream& noise,
                          uint32_t step, int lane) {
  const int count = static_cast<int>(*memory.num_doubtful);
  NCA_UNROLL_NONE
  for (int i = lane; i < count; i += team.size) {
    const int cell = memory.doubtful[i], place = memory.place[cell];
    float features[1][NUM_FEATURES], logits[1][S], best, second;
    int state;
    features_at(memory.rule, memory.now + place, law.stride, features[0]);
    logits_of<S, 1>(memory.rule, law.num_states, features, logits);
    best_of(logits[0], law.sampling.identity_bias, memory.now[place], best, second, state);
    const uint32_t bits = bits_at(noise, step, static_cast<uint32_t>(cell)).word[0];
    memory.next[place] = cell_sample(logits[0], 1, S, best, law.sampling, bits);
  }
}

NCA_FN void fill_border(const Team& team, const Law& law, uint8_t* states, int lane) {
  const int across = 2 * law.stride, all = across + 2 * law.height;
  for (int i = lane; i < all; i += team.size) {
    int row, column;
    if (i < across) {
      row = i < law.stride ? 0 : law.height + 1;
      column = i < law.stride ? i : i - law.stride;
    } else {
      row = 1 + (i - across) / 2;
      column = (i & 1) ? law.width + 1 : 0;
    }
    const int from_row = row == 0 ? law.height : row == law.height + 1 ? 1 : row;
    const int from_column = column == 0 ? law.width : column == law.width + 1 ? 1 : column;
    states[row * law.stride + column] = states[from_row * law.stride + from_column];
  }
}

template <int S>
NCA_FN void update(const Team& team, const Law& law, TeamMemory<S>& memory, const Stream& noise, uint32_t step) {
  team.phase([&](int lane) { take_best(team, law, memory, lane); });
  team.phase([&](int lane) { draw_doubtful(team, law, memory, noise, step, lane); });
  team.phase([&](int lane) {
    fill_border(team, law, memory.next, lane);
    if (lane == 0) *memory.num_doubtful = 0;
  });
  uint8_t* const before = memory.now;
  memory.now = memory.next;
  memory.next = before;
}

}  // namespace cuda
}  // namespace nca
