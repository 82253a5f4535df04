"""Measures llama.cpp through llama-cpp-python, by the protocol of isotherm-bench-local.

  PYTHON bench/e2e/llama_baseline.py --model base.gguf --threads 2

A benchmark-only dependency: pip install llama-cpp-python into a virtual environment of its own and
name its interpreter in `isotherm bench --compare "PYTHON bench/e2e/llama_baseline.py --model .."`.
"""

import argparse
import json
import sys
import time


def generate(llm, job):
    prompt = [int(token) for token in job["prompt"]]
    wanted = int(job["generate"])
    llm.reset()
    start = time.perf_counter()
    llm.eval(prompt)
    token = llm.sample(temp=0.0)
    first = time.perf_counter()
    for _ in range(wanted - 1):
        llm.eval([token])
        token = llm.sample(temp=0.0)
    end = time.perf_counter()
    return {
        "time_to_first_token_ms": 1e3 * (first - start),
        "decode_ms": 1e3 * (end - first),
        "tokens": wanted,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    args = parser.parse_args()

    import llama_cpp

    llm = llama_cpp.Llama(
        model_path=args.model,
        n_ctx=args.context,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    answer = {"ready": True, "name": f"llama.cpp ({llama_cpp.__version__})"}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        try:
            job = json.loads(line)
            if job.get("exact"):
                answer = {"skip": True}
            else:
                answer = generate(llm, job)
        except (ValueError, KeyError, RuntimeError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
