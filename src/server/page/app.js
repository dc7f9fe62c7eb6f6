// The chat page: conversations in this browser, answers streamed from the server it came from.
//
// Nothing that a model or a server wrote is ever parsed as HTML: text becomes nodes by
// createElement and textContent only.
"use strict";

// ---- markdown -> nodes

const SAFE_LINK = /^(https?:|mailto:)/i;

// Inline parts: code, bold, italic, struck, links. What is not closed is text.
function addInline(parent, text, depth = 0) {
  const pattern =
    /(`+)([^`](?:[\s\S]*?[^`])?)\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|(?<![\w*])\*(?=[^\s*])([\s\S]*?[^\s*])\*(?![\w*])|(?<!\w)_(?=\S)([^_]*?\S)_(?!\w)|~~(?=\S)([\s\S]*?\S)~~|\[([^\[\]]{1,500})\]\(([^()\s]{1,2000})\)|(https?:\/\/[^\s<>"'`)\]]{1,2000})|\\([\\`*_{}[\]()#+\-.!~|>])/g;
  let at = 0;
  const plain = (to) => {
    if (to > at) parent.append(document.createTextNode(text.slice(at, to)));
  };
  const wrap = (tag, inner) => {
    const node = document.createElement(tag);
    if (depth < 8) addInline(node, inner, depth + 1); else node.textContent = inner;
    parent.append(node);
  };
  for (let m; (m = pattern.exec(text));) {
    plain(m.index);
    at = pattern.lastIndex;
    if (m[2] !== undefined) {
      const code = document.createElement("code");
      code.textContent = m[2];
      parent.append(code);
    } else if (m[3] !== undefined) {
      wrap("strong", m[3]);
    } else if (m[4] !== undefined) {
      wrap("em", m[4]);
    } else if (m[5] !== undefined) {
      wrap("em", m[5]);
    } else if (m[6] !== undefined) {
      wrap("del", m[6]);
    } else if (m[7] !== undefined || m[9] !== undefined) {
      const target = m[8] ?? m[9];
      if (SAFE_LINK.test(target)) {
        const link = document.createElement("a");
        link.href = target;
        link.target = "_blank";
        link.rel = "noopener noreferrer nofollow";
        link.textContent = m[7] ?? m[9];
        parent.append(link);
      } else {
        parent.append(document.createTextNode(m[0]));
      }
    } else {
      parent.append(document.createTextNode(m[10]));
    }
  }
  plain(text.length);
}

function codeBlock(lines, language) {
  const pre = document.createElement("pre");
  const code = document.createElement("code");
  code.textContent = lines.join("\n");
  if (language) code.dataset.language = language;
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "copy";
  copy.textContent = "Copy";
  copy.addEventListener("click", () => copyText(code.textContent, copy));
  pre.append(code, copy);
  return pre;
}

function tableCells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const node = document.createElement(/\d/.test(first[2]) ? "ol" : "ul");
  if (node.tagName === "OL") node.start = parseInt(first[2], 10);
  const indent = first[1].length;
  for (let i = 0; i < lines.length;) {
    const item = document.createElement("li");
    const head = ITEM.exec(lines[i]);
    addInline(item, head ? head[3] : lines[i].trim());
    const inner = [];
    for (++i; i < lines.length; ++i) {
      const next = ITEM.exec(lines[i]);
      if (next && next[1].length <= indent + 1) break;
      inner.push(lines[i]);
    }
    const strip = Math.min(...inner.filter((l) => l.trim()).map((l) => l.search(/\S/)), 1000);
    if (inner.length) item.append(...blocks(inner.map((l) => l.slice(strip)), depth + 1));
    node.append(item);
  }
  return node;
}

function blocks(lines, depth = 0) {
  const out = [];
  const isBreak = (line) =>
    !line.trim() || /^\s*(```|~~~|#{1,6}\s|>)/.test(line) || ITEM.test(line) || /^\s*([-*_]\s*){3,}$/.test(line);
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    const fence = /^\s*(```+|~~~+)\s*([\w+#.-]*)/.exec(line);
    const heading = /^(#{1,6})\s+(.*?)#*\s*$/.exec(line);
    if (!line.trim()) {
      ++i;
    } else if (fence) {
      const code = [];
      for (++i; i < lines.length && !lines[i].trim().startsWith(fence[1]); ++i) code.push(lines[i]);
      ++i;
      out.push(codeBlock(code, fence[2]));
    } else if (heading) {
      const node = document.createElement("h" + Math.min(6, heading[1].length + 1));
      addInline(node, heading[2]);
      out.push(node);
      ++i;
    } else if (/^\s*([-*_]\s*){3,}$/.test(line)) {
      out.push(document.createElement("hr"));
      ++i;
    } else if (/^\s*>/.test(line) && depth < 8) {
      const quoted = [];
      for (; i < lines.length && /^\s*>/.test(lines[i]); ++i) quoted.push(lines[i].replace(/^\s*> ?/, ""));
      const node = document.createElement("blockquote");
      node.append(...blocks(quoted, depth + 1));
      out.push(node);
    } else if (ITEM.test(line) && depth < 8) {
      const items = [];
      for (; i < lines.length; ++i) {
        const blank = !lines[i].trim();
        if (blank && !(i + 1 < lines.length && /^(\s{2,}\S|\s*([-*+]|\d{1,9}[.)])\s)/.test(lines[i + 1]))) break;
        if (!blank && !ITEM.test(lines[i]) && !/^\s/.test(lines[i])) break;
        items.push(lines[i]);
      }
      out.push(list(items, depth));
    } else if (line.includes("|") && i + 1 < lines.length && /^\s*\|?(\s*:?-+:?\s*\|)+\s*:?-*:?\s*$/.test(lines[i + 1])) {
      const table = document.createElement("table");
      const row = (cells, tag) => {
        const tr = document.createElement("tr");
        for (const cell of cells) {
          const td = document.createElement(tag);
          addInline(td, cell);
          tr.append(td);
        }
        table.append(tr);
      };
      row(tableCells(line), "th");
      for (i += 2; i < lines.length && lines[i].includes("|"); ++i) row(tableCells(lines[i]), "td");
      out.push(table);
    } else {
      const paragraph = [line];
      for (++i; i < lines.length && !isBreak(lines[i]); ++i) paragraph.push(lines[i]);
      const node = document.createElement("p");
      paragraph.forEach((text, n) => {
        if (n) node.append(document.createElement("br"));
        addInline(node, text);
      });
      out.push(node);
    }
  }
  return out;
}

function renderMarkdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"));
}

// ---- storage

const KEY = "lathe-chat-1";
const DEFAULTS = { apiKey: "", model: "", system: "", temperature: "", top_p: "", top_k: "", min_p: "", max_tokens: "", seed: "", theme: "" };

function loadState() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY)) ?? {};
    const conversations = (stored.conversations ?? []).filter((c) => c && Array.isArray(c.messages));
    return { conversations, current: stored.current ?? null, settings: { ...DEFAULTS, ...stored.settings } };
  } catch {
    return { conversations: [], current: null, settings: { ...DEFAULTS } };
  }
}

let state = loadState();

function save() {
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    showError("This browser cannot keep the conversation (its storage is full or closed).");
  }
}

// ---- elements

const $ = (id) => document.getElementById(id);
const el = {};
for (const id of ["sidebar", "shade", "conversations", "messages", "composer", "input", "send", "stop", "error", "speed",
  "cache", "title", "model", "menu", "settings", "settings-form", "new-chat", "open-settings", "theme", "delete-all"]) {
  el[id] = $(id);
}

function showError(text) {
  el.error.textContent = text;
  el.error.hidden = !text;
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ---- conversations

const current = () => state.conversations.find((c) => c.id === state.current) ?? null;

function newConversation() {
  if (running) stop();
  state.current = null;
  save();
  render();
  closeMenu();
  el.input.focus();
}

function ensureConversation(firstText) {
  if (current()) return current();
  const conversation = {
    id: Date.now().toString(36) + Math.random().toString(36).slice(2, 8),
    title: firstText.trim().replace(/\s+/g, " ").slice(0, 60) || "Conversation",
    messages: [],
  };
  state.conversations.unshift(conversation);
  state.current = conversation.id;
  return conversation;
}

function deleteConversation(id) {
  const conversation = state.conversations.find((c) => c.id === id);
  if (!conversation || !confirm(`Delete "${conversation.title}"?`)) return;
  if (running && running.conversation.id === id) stop();
  state.conversations = state.conversations.filter((c) => c.id !== id);
  if (state.current === id) state.current = null;
  save();
  render();
}

function renderSidebar() {
  el.conversations.replaceChildren(...state.conversations.map((conversation) => {
    const item = document.createElement("li");
    item.className = conversation.id === state.current ? "current" : "";
    const open = document.createElement("button");
    open.type = "button";
    open.className = "open";
    open.textContent = conversation.title;
    if (conversation.id === state.current) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => {
      if (running && running.conversation.id !== conversation.id) stop();
      state.current = conversation.id;
      save();
      render();
      closeMenu();
    });
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "delete";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `Delete ${conversation.title}`);
    remove.addEventListener("click", () => deleteConversation(conversation.id));
    item.append(open, remove);
    return item;
  }));
}

function fillBody(body, message) {
  if (message.role === "user") {
    body.textContent = message.content;
  } else {
    body.replaceChildren(...renderMarkdown(message.content));
  }
}

function toolButton(text, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => action(button));
  return button;
}

function messageNode(message, index) {
  const node = document.createElement("article");
  node.className = `message ${message.role}${message.error ? " error" : ""}`;
  node.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  const body = document.createElement("div");
  body.className = "body";
  fillBody(body, message);
  const note = document.createElement("div");
  note.className = "note";
  note.textContent = message.note ?? "";
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(toolButton("Copy", (button) => copyText(message.content, button)));
  if (message.role === "user") {
    tools.append(toolButton("Edit", () => editMessage(node, index)));
  } else {
    tools.append(toolButton("Regenerate", () => regenerate(index)));
  }
  node.append(body, note, tools);
  return node;
}

function render() {
  renderSidebar();
  const conversation = current();
  el.title.textContent = conversation ? conversation.title : "New conversation";
  if (!conversation || conversation.messages.length === 0) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "Ask something.";
    el.messages.replaceChildren(empty);
  } else {
    el.messages.replaceChildren(...conversation.messages.map(messageNode));
    el.messages.scrollTop = el.messages.scrollHeight;
  }
  updateButtons();
}

function updateButtons() {
  el.send.hidden = !!running;
  el.stop.hidden = !running;
}

function editMessage(node, index) {
  if (running) return;
  const conversation = current();
  const box = document.createElement("textarea");
  box.value = conversation.messages[index].content;
  box.setAttribute("aria-label", "Edit message");
  const row = document.createElement("div");
  row.className = "row";
  const accept = () => {
    const text = box.value.trim();
    if (!text) return;
    conversation.messages.length = index;
    send(text);
  };
  row.append(toolButton("Send", accept), toolButton("Cancel", render));
  row.firstChild.className = "primary";
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      accept();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      render();
    }
  });
  node.replaceChildren(box, row);
  box.focus();
}

function regenerate(index) {
  if (running) return;
  const conversation = current();
  conversation.messages.length = index;
  answer(conversation);
}

// ---- the server

function headers() {
  const out = { "Content-Type": "application/json" };
  if (state.settings.apiKey) out.Authorization = `Bearer ${state.settings.apiKey}`;
  return out;
}

async function errorText(response) {
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 500);
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch { /* not JSON: as it is */ }
  if (response.status === 401) message += " Set the API key in the settings.";
  return `${response.status}: ${message || response.statusText}`;
}

let models = [];
async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return showError(await errorText(response));
    models = (await response.json()).data.map((m) => String(m.id));
    showError("");
  } catch {
    showError("The server does not answer.");
  }
  el.model.textContent = chosenModel();
}

function chosenModel() {
  return models.includes(state.settings.model) ? state.settings.model : models[0] ?? state.settings.model;
}

function requestBody(conversation) {
  const messages = conversation.messages
    .filter((m) => m.role === "user" || m.content)
    .map((m) => ({ role: m.role, content: m.content }));
  if (state.settings.system.trim()) messages.unshift({ role: "system", content: state.settings.system });
  const body = { model: chosenModel(), messages, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"]) {
    const value = state.settings[name];
    if (value !== "" && Number.isFinite(Number(value))) body[name] = Number(value);
  }
  return body;
}

// Calls onEvent with the data of each server-sent event.
async function readEvents(stream, onEvent) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    buffer += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = buffer.split(/\r\n|\n|\r(?!$)/);
    buffer = done ? "" : lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      } else if (line === "" && data.length) {
        onEvent(data.join("\n"));
        data = [];
      }
    }
    if (done) return;
  }
}

// The answer in progress: {conversation, controller}. One at a time.
let running = null;

function stop() {
  running?.controller.abort();
}

function send(text) {
  const conversation = ensureConversation(text);
  conversation.messages.push({ role: "user", content: text });
  answer(conversation);
}

async function answer(conversation) {
  showError("");
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  const own = { conversation, controller: new AbortController() };
  running = own;
  save();
  render();
  el.speed.textContent = "Waiting…";
  const started = performance.now();
  let first = 0, tokens = 0, usage = null, drawn = 0, frame = 0;
  // The node may be made anew by render() while the answer comes.
  const draw = () => {
    frame = 0;
    drawn = performance.now();
    if (state.current !== conversation.id) return;
    const node = el.messages.lastElementChild;
    if (!node?.classList.contains("assistant")) return;
    const near = el.messages.scrollHeight - el.messages.scrollTop - el.messages.clientHeight < 80;
    const body = node.querySelector(".body");
    fillBody(body, message);
    body.classList.toggle("waiting", running === own);
    if (near) el.messages.scrollTop = el.messages.scrollHeight;
    const seconds = (performance.now() - first) / 1000;
    if (first && running === own) el.speed.textContent = `${tokens} tokens, ${(tokens / Math.max(seconds, 0.05)).toFixed(1)} tokens/s`;
  };
  // Long answers take longer to draw; never more than a fifth of the time.
  let cost = 0;
  const schedule = () => {
    if (frame) return;
    frame = setTimeout(() => {
      const begin = performance.now();
      draw();
      cost = performance.now() - begin;
    }, Math.max(30, 4 * cost));
  };
  schedule();
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(requestBody(conversation)), signal: own.controller.signal,
    });
    if (!response.ok) throw new Error(await errorText(response));
    let ended = false;
    await readEvents(response.body, (data) => {
      if (data === "[DONE]") {
        ended = true;
        return;
      }
      const event = JSON.parse(data);
      if (event.error) throw new Error(String(event.error.message ?? "the server failed"));
      if (event.usage) usage = event.usage;
      const choice = event.choices?.[0];
      const piece = choice?.delta?.content;
      if (piece) {
        if (!first) first = performance.now();
        ++tokens;
        message.content += piece;
        schedule();
      }
      if (choice?.finish_reason) {
        ended = true;
        if (choice.finish_reason === "length") message.note = "Cut off: the longest answer was reached.";
      }
    });
    if (!ended) throw new Error("the connection was lost");
  } catch (error) {
    if (own.controller.signal.aborted) {
      message.note = "Stopped.";
    } else {
      const text = error instanceof TypeError ? "The server does not answer." : error.message;
      message.error = true;
      message.note = text;
      showError(text);
    }
  } finally {
    clearTimeout(frame);
    running = null;
    if (!message.content && !message.note) message.note = "An empty answer.";
    const count = usage?.completion_tokens ?? tokens;
    const seconds = first ? (performance.now() - first) / 1000 : 0;
    const rate = seconds > 0 && count > 1 ? `, ${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
    const wait = first ? `, first after ${((first - started) / 1000).toFixed(2)} s` : "";
    el.speed.textContent = count ? `${count} tokens${rate}${wait}` : "";
    const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
    if (usage) el.speed.textContent += `; prompt ${usage.prompt_tokens}, of which ${cached} from the cache`;
    save();
    if (state.current === conversation.id) render(); else updateButtons();
    showCacheUse();
  }
}

async function showCacheUse() {
  try {
    const response = await fetch("metrics", { headers: headers() });
    if (!response.ok) return;
    const found = /^(?:vllm:kv_cache_usage_perc|vllm:gpu_cache_usage_perc)(?:\{[^}]*\})? ([0-9.eE+-]+)/m.exec(await response.text());
    if (found) el.cache.textContent = `Cache ${(100 * Number(found[1])).toFixed(0)} % used`;
  } catch { /* a number less */ }
}

// ---- settings, theme, menu

function openSettings() {
  const form = el["settings-form"];
  form.elements.model.replaceChildren(...models.map((id) => new Option(id, id)));
  for (const name of Object.keys(DEFAULTS)) {
    if (form.elements[name]) form.elements[name].value = name === "model" ? chosenModel() : state.settings[name];
  }
  el.settings.showModal();
}

el.settings.addEventListener("close", () => {
  if (el.settings.returnValue !== "save") return;
  const form = el["settings-form"];
  for (const name of Object.keys(DEFAULTS)) {
    if (form.elements[name]) state.settings[name] = form.elements[name].value;
  }
  save();
  loadModels();
  el.input.focus();
});

function applyTheme() {
  if (state.settings.theme) {
    document.documentElement.dataset.theme = state.settings.theme;
  } else {
    delete document.documentElement.dataset.theme;
  }
}

function toggleTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = state.settings.theme || system;
  const next = now === "dark" ? "light" : "dark";
  state.settings.theme = next === system ? "" : next;
  save();
  applyTheme();
}

function closeMenu() {
  document.body.classList.remove("menu-open");
  el.shade.hidden = true;
  el.menu.setAttribute("aria-expanded", "false");
}

el.menu.addEventListener("click", () => {
  const open = document.body.classList.toggle("menu-open");
  el.shade.hidden = !open;
  el.menu.setAttribute("aria-expanded", String(open));
});
el.shade.addEventListener("click", closeMenu);
el["new-chat"].addEventListener("click", newConversation);
el["open-settings"].addEventListener("click", openSettings);
el.theme.addEventListener("click", toggleTheme);
el.stop.addEventListener("click", stop);
el["delete-all"].addEventListener("click", () => {
  if (!confirm("Delete all conversations?")) return;
  stop();
  state.conversations = [];
  state.current = null;
  save();
  render();
});

function fitInput() {
  el.input.style.height = "auto";
  el.input.style.height = `${el.input.scrollHeight + 2}px`;
}
el.input.addEventListener("input", fitInput);
el.input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    el.composer.requestSubmit();
  }
});
el.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = el.input.value;
  if (running || !text.trim()) return;
  el.input.value = "";
  fitInput();
  send(text);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !el.settings.open) {
    if (document.body.classList.contains("menu-open")) closeMenu(); else stop();
  } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    newConversation();
  } else if ((event.ctrlKey || event.metaKey) && event.key === ",") {
    event.preventDefault();
    openSettings();
  }
});
// Another tab changed the conversations: take them over unless an answer is coming here.
window.addEventListener("storage", (event) => {
  if (event.key !== KEY || running) return;
  const here = state.current;
  state = loadState();
  state.current = here;
  applyTheme();
  render();
});

applyTheme();
render();
fitInput();
loadModels();
showCacheUse();
