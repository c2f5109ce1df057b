#!/usr/bin/env bash
# All that is to be measured on a card, in the order of what is wanted most; 8 minutes at most.
#
#   dpbert_jax/benchmark/device.sh OUT      # then again with the same OUT: it goes on where it stopped
#
# Every step writes OUT/<step>.json at once, and is left out where that is there. A step that fails
# leaves OUT/<step>.log and stops no other. In the environment:
#   DEVICE_SECONDS  time for all of it (470)        PYTHON  the interpreter (python3)
#   DATA            a folder with MRPC and SST-2 (glue_data); steps whose data is absent are left out
#   MODEL           the encoder to fine-tune (minilm)
#   BIG             the model to time (bert-base)
#   TRAIN           more flags of train.py, and in place of DATA's MRPC: --train_file ...
#   KEEP, BATCHES, LENGTH, REPEATS                  sizes of what is timed
set -u
OUT=${1:?give a folder for the figures}
PYTHON=${PYTHON:-python3}
DATA=${DATA:-glue_data}
MODEL=${MODEL:-minilm}
BIG=${BIG:-bert-base}
KEEP=${KEEP:-12 9 6 3}
BATCHES=${BATCHES:-32 256}
LENGTH=${LENGTH:-128}
REPEATS=${REPEATS:-30}
TRAIN=${TRAIN:---data_dir $DATA/MRPC --num_planner_epochs 1 --num_final_epochs 4 --per_device_train_batch_size 16}
END=$((SECONDS + ${DEVICE_SECONDS:-470}))
mkdir -p "$OUT/cache" "$OUT/runs" || exit 2
export DPBERT_JAX_PROGRAMS= JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3

# step NAME COMMAND...: "@" in the command is the file to write.
step() {
    local name=$1 left=$((END - SECONDS)) part command=()
    shift
    [ -s "$OUT/$name.json" ] && return
    if [ "$left" -lt 5 ]; then
        echo "$name: no time left"
        return
    fi
    for part in "$@"; do
        command+=("${part//@/$OUT/$name.part}")
    done
    if timeout "$left" "${command[@]}" >"$OUT/$name.log" 2>&1 && [ -s "$OUT/$name.part" ]; then
        mv "$OUT/$name.part" "$OUT/$name.json"
        echo "$name: done, $((END - SECONDS)) s left"
    else
        echo "$name: FAILED, see $OUT/$name.log"
    fi
}

measure() { # NAME STEP FLAGS...
    local name=$1 which=$2
    shift 2
    step "$name" "$PYTHON" -m dpbert_jax.benchmark.device_step "$which" --json @ \
        --model_name_or_path "$BIG" --batch_sizes $BATCHES --length "$LENGTH" --keep $KEEP \
        --repeats "$REPEATS" "$@"
}

bench() { # NAME FLAGS...
    local name=$1
    shift
    step "$name" "$PYTHON" -m dpbert_jax benchmark "$BIG" --json @ --keep $KEEP \
        --repeats "$REPEATS" "$@"
}

fine_tune() { # NAME CACHE FLAGS...
    local name=$1 cache=$2
    shift 2
    # What an interrupted run left would make a cold one warm.
    [[ $name == *_cold && ! -s $OUT/$name.json ]] && rm -rf "$OUT/cache/$cache"
    step "$name" env JAX_COMPILATION_CACHE_DIR="$OUT/cache/$cache" \
        "$PYTHON" -m dpbert_jax.benchmark.device_train @ --model_name_or_path "$MODEL" $TRAIN \
        --output_dir "$OUT/runs/$name" --overwrite_output_dir --report_to none "$@"
}

measure machine machine
[[ $TRAIN == *"--data_dir $DATA/MRPC"* && ! -d $DATA/MRPC ]] && TRAIN=
if [ -n "$TRAIN" ]; then
    fine_tune train_bf16_cold bf16 --bf16
    fine_tune train_bf16_warm bf16 --bf16
    fine_tune train_float32_cold float32
fi
for dtype in bf16 float32; do
    flags=()
    [ $dtype = bf16 ] && flags=(--bf16)
    bench "batch_1_$dtype" --batch_sizes 1 --seq_lengths "$LENGTH" --executors cond "${flags[@]}"
done
measure torch torch
# Conditionals inside CUDA graphs: XLA's own default leaves them out.
GRAPHS=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION
if [ "${JAX_PLATFORMS:-}" != cpu ]; then
    PLAIN=${XLA_FLAGS:-}
    export XLA_FLAGS="$PLAIN --xla_gpu_enable_command_buffer=$GRAPHS --xla_gpu_graph_min_graph_size=1"
    measure gates_in_graphs gates
    measure launches_in_graphs launches
    export XLA_FLAGS=$PLAIN
fi
measure gates gates
measure launches launches
bench batches_bf16 --batch_sizes $BATCHES --seq_lengths "$LENGTH" --executors chunked masked --bf16
measure attention attention
measure chunks chunks
if [ -d "$DATA/SST-2" ]; then
    bench sst2_bf16 --data_dir "$DATA/SST-2" --batch_sizes $BATCHES --executors chunked --bf16
fi
if [ -n "$TRAIN" ]; then
    fine_tune train_float32_warm float32
    fine_tune train_checkpointing bf16 --bf16 --gradient_checkpointing
    for seed in 43 44 45 46; do # while time lasts
        fine_tune "train_bf16_seed_$seed" bf16 --bf16 --seed $seed
    done
fi
exit 0
