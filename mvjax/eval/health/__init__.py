"""Conversation health: what tuning did to the conversation, beside whether the answers are right.

    recordings     what the user says, and what there is to see meanwhile
    conversations  the model's side of it, with the image and as plain Moshi
    activity       who speaks when, by voice activity in the two channels
    timing         time to respond, take-over in pauses, stop latency, overlap, silence, greeting
    leak           plain Moshi beside the same model with its adapters loaded
    recognize      whether the speech says the text, by speech recognition
    quality        DNSMOS
    checkup        all of it, as JSON and as a table

docs/evaluation.md, "Conversation health", has the definitions with their sources.
"""
