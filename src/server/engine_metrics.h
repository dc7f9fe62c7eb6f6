// The engine's speculation, cache and parking as /metrics shows them: vLLM's names where it has
// them, those of AutoJudge's specification behind lathe_ otherwise.
#pragma once
#include "engine/engine.h"
#include "server/judge_shadow.h"
#include "server/metrics.h"
#include "server/served_speculation.h"

namespace lathe {

// Nothing for a server without a draft. shadow: null: none.
void add_speculation_metrics(MetricText& out, const MetricLabels& labels,
                             const ServedSpeculation& served, const EngineStats& engine,
                             const JudgeShadow* shadow);
// How large the cache is, how full, and what a number takes in it, by kind of block.
void add_cache_metrics(MetricText& out, const MetricLabels& labels, const EngineStats& engine);
// Nothing for a server that does not park.
void add_parking_metrics(MetricText& out, const MetricLabels& labels, const ParkingStats& parking);

}  // namespace lathe
